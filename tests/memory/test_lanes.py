"""However late a copy comes, and whatever lay in a buffer before: a block computes with its own weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusemble.memory.place import Placement
from diffusemble.memory.plan import BUFFERS
from diffusemble.memory.recompute import recompute_blocks
from memory_cases import a_call, a_plan, an_ensemble, predict


class LatestLane:
    """Copies at the last moment that the contract allows, and leaves NaN in a buffer until then.

    Attributes:
        broken: rules that were broken.
    """

    def __init__(self) -> None:
        self.pending: dict[int, tuple[Tensor, Tensor]] = {}
        self.computing: set[int] = set()
        self.broken: list[str] = []

    def bring(self, number: int, source: Tensor, target: Tensor) -> None:
        if number in self.computing:
            self.broken.append(f"a copy into buffer {number} while something computes there")
        target.fill_(255)  # NaN in every number type
        self.pending[number] = (source, target)

    def arrive(self, number: int) -> None:
        self.computing.add(number)
        if number in self.pending:
            source, target = self.pending.pop(number)
            target.copy_(source)

    def done(self, number: int) -> None:
        self.computing.discard(number)

    def settle(self) -> None:
        self.pending.clear()


@pytest.mark.parametrize(("combiner", "storage"), [("sabw", "int8"), ("mixture-blocks", "same")])
def test_weights_are_read_between_arriving_and_being_done(combiner: str, storage: str) -> None:
    ensemble = an_ensemble("sd", combiner, preset="tiny")
    call, plan = a_call(ensemble), a_plan(ensemble, resident=1.3, storage=storage)
    with Placement(ensemble, plan, "cpu") as placed:
        expected = predict(ensemble, call)
    with Placement(ensemble, plan, "cpu") as placed:
        placed.conveyor.lane = lane = LatestLane()
        for _ in range(2):
            assert torch.equal(predict(ensemble, call), expected)
            placed.conveyor.stop()
    assert lane.broken == []
    assert lane.computing == set()


@pytest.mark.parametrize(("resident", "storage"), [(0, "same"), (0.7, "int8")])
def test_weights_are_there_for_both_passes_of_a_training_step(resident: float, storage: str) -> None:
    ensemble = an_ensemble("sd", n=2)
    call, plan = a_call(ensemble), a_plan(ensemble, resident=resident, storage=storage)
    with Placement(ensemble, plan, "cpu"):
        pass  # what is stored in eight bits stays rounded

    def gradients() -> list[Tensor]:
        ensemble.zero_grad()
        ensemble(**call).sample.square().mean().backward()
        return [weight.grad.clone() for weight in ensemble.aggregator.parameters() if weight.grad is not None]

    recompute_blocks(ensemble)
    expected = gradients()
    with Placement(ensemble, plan, "cpu") as placed:
        placed.conveyor.lane = lane = LatestLane()
        recompute_blocks(ensemble)
        found = gradients()
        assert placed.residence.peak <= plan.weights
    assert lane.broken == []
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_buffer_that_failed_to_come_is_asked_for_again() -> None:
    ensemble = an_ensemble("sd", "mean")
    call = a_call(ensemble)
    expected = predict(ensemble, call)
    with Placement(ensemble, a_plan(ensemble, resident=0), "cpu") as placed:
        before, take = placed.residence.bytes, placed.residence.take
        given: list[Any] = []

        def failing(size: int) -> Tensor:
            if given:
                raise torch.OutOfMemoryError("no more")
            given.append(size)
            return take(size)

        placed.residence.take = failing  # type: ignore[method-assign]
        with pytest.raises(torch.OutOfMemoryError):
            predict(ensemble, call)
        placed.conveyor.stop()
        assert placed.residence.bytes == before
        placed.residence.take = take  # type: ignore[method-assign]
        assert torch.equal(predict(ensemble, call), expected)
        assert len(placed.conveyor.buffers) == BUFFERS
