"""Ctrl-C anywhere: no weight is lost, and everything goes back to where it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffusemble import EnsembleDenoiser
from diffusemble.memory.bundle import weights_of
from diffusemble.memory.place import Placement
from diffusemble.memory.plan import Plan
from memory_cases import a_call, a_plan, an_ensemble, predict
from stock import small_pipeline
from tiny import as_expert


class Interrupted(TorchDispatchMode):
    """Ctrl-C before operation number ``at`` (from 0); counts operations."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += 1
        if self.count - 1 == self.at:
            raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("storage", ["same", "float8"])
def test_ctrl_c_while_placing_drawing_or_leaving_loses_nothing(storage: str) -> None:
    ensemble = an_ensemble("sd", "mean", n=2)
    call, plan = a_call(ensemble, batch=1), a_plan(ensemble, resident=0.8, storage=storage)
    with Placement(ensemble, plan, "cpu"):
        predict(ensemble, call)  # eight-bit weights are rounded once and for all
    expected = predict(ensemble, call)
    with Interrupted() as counted, Placement(ensemble, plan, "cpu"):
        predict(ensemble, call)
    first = 3 if storage == "same" else counted.count // 8  # between the places where the other one is interrupted
    for at in range(first, counted.count, counted.count // 4):
        placements: list[Placement] = []
        with pytest.raises(KeyboardInterrupt), Interrupted(at):
            draw(placements, ensemble, plan, call)
        for one in placements:
            one.release()  # if it was interrupted in leaving
        assert torch.equal(predict(ensemble, call), expected), at
        memories = {weight.untyped_storage().data_ptr() for weight in weights_of([ensemble])}
        assert len(memories) == len(weights_of([ensemble]))


def draw(placements: list[Placement], ensemble: EnsembleDenoiser, plan: Plan, call: Mapping[str, Any]) -> None:
    """Place and predict; ``placements`` gets the placement as soon as there is one."""
    with Placement(ensemble, plan, "cpu") as placed:
        placements.append(placed)
        predict(ensemble, call)


def test_an_encoder_that_was_interrupted_on_its_way_comes_again() -> None:
    ensemble = EnsembleDenoiser([as_expert(small_pipeline(0))]).eval()
    encoder = ensemble.experts[0].components["text_encoder"]
    ids = torch.ones(1, 4, dtype=torch.long)
    with torch.no_grad(), Placement(ensemble, a_plan(ensemble, parts="visit"), "cpu") as placed:
        homes = {id(weight): weight.data_ptr() for weight in weights_of([encoder])}
        with pytest.raises(KeyboardInterrupt), Interrupted(5):
            encoder(ids)
        encoder(ids)
        assert all(weight.data_ptr() != homes[id(weight)] for weight in weights_of([encoder]))
        placed.visitors.leave()
        assert all(weight.data_ptr() == homes[id(weight)] for weight in weights_of([encoder]))
