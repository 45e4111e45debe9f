from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.experts.expert import Expert
from diffusemble.training.corpus import encode_corpus
from diffusemble.training.learner import Learner
from diffusemble.training.objective import prediction_error
from diffusemble.training.place import place
from diffusemble.training.rate import rate_at
from diffusemble.training.schedule import diffusion_of
from diffusemble.training.train import build_ensemble
from training.small import small_config, small_experts

CPU = torch.device("cpu")


def learner(experts: tuple[Expert, ...], data: Path, objective: Any = prediction_error, **changes: Any) -> Learner:
    config = small_config(data, data.parent / "unused", **changes)
    ensemble = build_ensemble(config, experts)
    place(ensemble, config, CPU)
    corpus = encode_corpus(config.data, config, ensemble, lambda *_: None)
    diffusion = diffusion_of(experts, CPU)
    return Learner(config, ensemble, Accelerator(), corpus, diffusion, lambda _: objective)


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.ensemble.aggregator.state_dict().items()}


def test_only_the_aggregator_learns(experts: tuple[Expert, ...], pictures: Path) -> None:
    run = learner(experts, pictures)
    frozen = copy.deepcopy(run.ensemble.denoisers.state_dict())
    before = weights(run)
    for step in range(2):
        run.advance(step)
    after = weights(run)
    # The last convolution of a point starts at zero, so everything before it learns from the second step on.
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(frozen[name], value) for name, value in run.ensemble.denoisers.state_dict().items())
    assert all(parameter.grad is None for parameter in run.ensemble.denoisers.parameters())


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_every_optimiser_step_has_its_rate(
    experts: tuple[Expert, ...], pictures: Path, accumulate: int, schedule: str
) -> None:
    run = learner(experts, pictures, warmup=2, schedule=schedule, accumulate=accumulate, steps=4, rate=0.01)
    used = []
    run.optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    told = [run.advance(step).rate for step in range(4)]
    assert used == told == [rate_at(step, run.config) for step in range(4)]
    assert used[:2] == [0.005, 0.01]


def test_a_batch_in_parts_has_the_gradient_of_the_whole(experts: tuple[Expert, ...], pictures: Path) -> None:
    results = []
    for accumulate in (1, 2, 4):
        run = learner(experts, pictures, accumulate=accumulate)
        gradients: list[torch.Tensor] = []
        run.optimizer.register_step_pre_hook(
            lambda *_, run=run, found=gradients: found.extend(weight.grad.clone() for weight in run.weights)
        )
        taken = run.advance(0)
        results.append((taken.loss, taken.norm, torch.cat([gradient.flatten() for gradient in gradients])))
    for loss, norm, gradient in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-5)
        assert norm == pytest.approx(results[0][1], rel=1e-4)
        assert torch.allclose(gradient, results[0][2], atol=1e-6)


def test_gradient_checkpointing_keeps_less_and_changes_nothing(pictures: Path) -> None:
    taken, kept = [], []
    for switch in (False, True):
        run = learner(small_experts(), pictures, gradient_checkpointing=switch)
        kept.append(0)

        def count(tensor: torch.Tensor) -> torch.Tensor:
            kept[-1] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            taken.append(run.advance(0))
    assert taken[0].loss == taken[1].loss
    assert taken[0].norm == pytest.approx(taken[1].norm, rel=1e-6)
    assert kept[1] < 0.8 * kept[0]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_loss_stops_before_the_weights_change(
    experts: tuple[Expert, ...], pictures: Path, broken: float
) -> None:
    run = learner(experts, pictures, lambda *given: prediction_error(*given) * broken)
    before = weights(run)
    with pytest.raises(FloatingPointError, match=rf"Step 5 gave a loss of {broken} .* Lower rate \(now 0.01\)"):
        run.advance(5)
    assert all(torch.equal(value, before[name]) for name, value in weights(run).items())


def test_a_broken_gradient_stops_too(experts: tuple[Expert, ...], pictures: Path) -> None:
    def broken_slope(*given: Any) -> torch.Tensor:
        loss = prediction_error(*given)
        return loss + (loss - loss.detach()).sqrt()  # the square root of zero has an infinite slope

    with pytest.raises(FloatingPointError, match=r"with a gradient of norm (nan|inf)"):
        learner(experts, pictures, broken_slope).advance(0)


def test_averaged_weights_are_shown_and_the_others_learn(experts: tuple[Expert, ...], pictures: Path) -> None:
    run = learner(experts, pictures, ema=0.75)
    expected = weights(run)
    for step in range(3):
        run.advance(step)
        for name, value in weights(run).items():
            expected[name] = 0.75 * expected[name] + 0.25 * value
    trained = weights(run)
    with run.shown() as ensemble:
        shown = weights(run)
        assert not ensemble.aggregator.training
    assert ensemble.aggregator.training
    assert all(torch.allclose(shown[name], expected[name], atol=1e-6) for name in expected)
    assert not any(torch.allclose(shown[name], trained[name], atol=1e-6) for name in expected)
    assert all(torch.equal(value, trained[name]) for name, value in weights(run).items())


def test_timesteps_beyond_the_schedule_are_refused(experts: tuple[Expert, ...], pictures: Path) -> None:
    with pytest.raises(ValueError, match="has the timesteps 0 to 999, so timesteps cannot end at 1000"):
        learner(experts, pictures, timesteps=[500, 1000])


def test_levels_outside_the_timesteps_are_refused(experts: tuple[Expert, ...], pictures: Path) -> None:
    with pytest.raises(ValueError, match=r"levels draws none of the timesteps 900 to 999: .* Widen levels.spread"):
        learner(experts, pictures, levels={"density": "logit-normal", "spread": 0.1}, timesteps=[900, 999])


def test_timesteps_are_drawn_as_often_as_the_levels_say(experts: tuple[Expert, ...], pictures: Path) -> None:
    run = learner(experts, pictures, levels={"density": "logit-normal", "mean": 3.0, "spread": 0.1}, timesteps=[0, 960])
    drawn = torch.cat([run.chance.draw(step, run.corpus.shape).timesteps for step in range(20)])
    assert (drawn > 900).all()  # around 1000 / (1 + exp(-3)) = 953
    assert (drawn <= 960).all()


def test_aggregators_without_weights_are_refused(experts: tuple[Expert, ...], pictures: Path) -> None:
    with pytest.raises(ValueError, match="The aggregator 'mean' has no weights, so there is nothing to train"):
        learner(experts, pictures, aggregator={"name": "mean"})


def test_experts_predicting_velocity_are_trained_on_velocity(pictures: Path) -> None:
    experts = small_experts()
    for expert in experts:
        expert.components["scheduler"].register_to_config(prediction_type="v_prediction")
    run = learner(experts, pictures)
    assert run.diffusion.prediction_type == "v_prediction"
    assert run.advance(0).loss != learner(small_experts(), pictures).advance(0).loss


def test_experts_without_a_scheduler_are_refused(experts: tuple[Expert, ...]) -> None:
    bare = EnsembleDenoiser([expert.denoiser for expert in experts]).experts
    with pytest.raises(ValueError, match="'expert 1' comes without a scheduler"):
        diffusion_of(bare, CPU)
