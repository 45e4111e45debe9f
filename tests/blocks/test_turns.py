"""Experts that take turns leave everything else that a denoiser is given where it belongs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusemble import EnsembleDenoiser, build_aggregator
from diffusemble.blocks.turns import select
from unet_cases import CASES
from unet_inputs import BATCH, packed

GIVEN = (
    "sd1-text-mask",
    "sd1-controlnet-odd",
    "sd1-image-prompt",
    "sd1-masked-image-prompts",
    "sd1-gligen",
    "sdxl-controlnet-adapter",
)


@dataclass(frozen=True)
class Record:
    """Something with one entry per sample, and something without."""

    own: Tensor
    shared: Tensor
    rest: Any = None


def test_samples_are_selected_wherever_there_is_one_entry_each() -> None:
    value = Record(torch.arange(3), torch.zeros(1, 3), {"list": [torch.arange(6).view(3, 2)], "pair": (None, "text")})
    found = select(value, [2, 0], 3)
    assert found.own.tolist() == [2, 0]
    assert found.shared is value.shared
    assert found.rest["list"][0].tolist() == [[4, 5], [0, 1]]
    assert found.rest["pair"] == (None, "text")


def turn_by_turn(point: int, feature: Tensor, context: Any) -> Tensor:
    """Every sample by another expert than its neighbour's, and than at the block before."""
    return torch.eye(2)[[(row + point) % 2 for row in range(BATCH)]]


@pytest.mark.parametrize("name", GIVEN)
def test_copies_of_one_expert_take_turns_without_a_trace(name: str) -> None:
    case = CASES[name]
    unet = case.unet()
    inputs = case.inputs(unet)
    ensemble = EnsembleDenoiser([unet, unet], build_aggregator("mixture-blocks", [unet] * 2, preset="tiny")).eval()
    ensemble.aggregator.route = turn_by_turn
    with torch.no_grad():
        ours = ensemble(case.sample(unet), case.timestep, **packed(inputs, 2)).sample
        theirs = unet(case.sample(unet), case.timestep, **inputs).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
