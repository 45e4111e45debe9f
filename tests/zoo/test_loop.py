import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from recipes.zoo.loop import Plan, State, epoch_indices, follow, step_generator, train

PLAN = Plan(steps=12, batch=4, rate=0.05, warmup=3, ema=0.9, save_seconds=0.0)


class KilledError(Exception):
    """Stands for a kill: leaves the loop between two checkpoints."""


def problem() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def run(folder: Path, stop_at: int | None = None, plan: Plan = PLAN) -> tuple[nn.Linear, list[float]]:
    model, losses = problem(), []

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        if step == stop_at:
            raise KilledError
        x = torch.randn(plan.batch, 3, generator=generator)
        loss = (model(x) - x[:, :2]).square().mean()
        losses.append(loss.item())
        return loss

    return train(model, loss_at, plan, folder), losses


def test_an_interrupted_training_ends_with_the_same_weights_and_losses(tmp_path: Path) -> None:
    whole, losses = run(tmp_path / "whole")
    with pytest.raises(KilledError):
        run(tmp_path / "parts", stop_at=7)
    resumed, rest = run(tmp_path / "parts")
    assert rest == losses[7:]
    assert torch.equal(resumed.weight, whole.weight)


def test_a_finished_training_is_only_loaded(tmp_path: Path) -> None:
    whole, _ = run(tmp_path)
    again, losses = run(tmp_path)
    assert losses == []
    assert torch.equal(again.weight, whole.weight)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    model = problem()

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        return model.weight.sum() * (math.nan if step == 5 else 1.0)

    with pytest.raises(FloatingPointError, match="steps 5 to 6"):
        train(model, loss_at, PLAN, tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 5


def test_the_rate_warms_up_and_falls_to_nothing() -> None:
    assert PLAN.rate_at(0) == pytest.approx(PLAN.rate / 3)
    assert PLAN.rate_at(3) == pytest.approx(PLAN.rate)
    assert PLAN.rate_at(12) == pytest.approx(0.0)


def test_each_pass_sees_everything_once() -> None:
    seen = torch.cat([epoch_indices(step, 4, 10, seed=1) for step in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))


def test_steps_have_generators_of_their_own() -> None:
    draws = [torch.rand((), generator=step_generator(0, step)) for step in (0, 1, 0)]
    assert draws[0] == draws[2] != draws[1]


def test_the_average_follows() -> None:
    average, model = nn.Linear(1, 1), nn.Linear(1, 1)
    expected = 0.75 * average.weight + 0.25 * model.weight
    follow(average, model, 0.75)
    torch.testing.assert_close(average.weight, expected)


def test_a_state_is_restored_whole(tmp_path: Path) -> None:
    states = []
    for rate in (0.1, 0.2):
        model = problem()
        states.append(State(model, problem(), torch.optim.AdamW(model.parameters(), rate), step=int(rate * 10)))
    states[0].save(tmp_path / "checkpoint.pt")
    states[1].load(tmp_path / "checkpoint.pt")
    assert states[1].step == 1
    assert states[1].optimizer.param_groups[0]["lr"] == 0.1
