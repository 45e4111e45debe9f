"""Published architectures at their real sizes, on the meta device: counts, shapes, bytes."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES

from diffusemble import EnsembleDenoiser
from diffusemble.blocks.example import example
from diffusemble.config.memory import MemoryConfig
from diffusemble.memory.measure import measure_weights
from diffusemble.memory.networks import networks_of
from diffusemble.memory.place import Placement
from diffusemble.memory.plan import Working, make_plan

POINTS = {"sd15": 25, "sd21": 25, "sdxl": 19, "sdxl-refiner": 25, "flux-dev": 57, "sd3-medium": 24}
POINTS |= {"sd35-medium": 24, "sd35-large": 38, "flux2-klein": 25, "z-image": 30}
QUICK = ("sd15", "sdxl", "flux-dev", "sd3-medium", "flux2-klein", "z-image")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]


@cache
def denoiser(name: str) -> Any:
    with torch.device("meta"):
        return ARCHITECTURES[name].build().half()


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_the_published_model(name: str) -> None:
    assert sum(weight.numel() for weight in denoiser(name).parameters()) == ARCHITECTURES[name].parameters


@pytest.mark.parametrize("name", NAMES)
def test_an_ensemble_of_them_has_its_points(name: str) -> None:
    ensemble = EnsembleDenoiser([denoiser(name)] * 3)
    assert len(ensemble.points) == POINTS[name] == len(ensemble.aggregator.points)
    weights = measure_weights(networks_of(ensemble))
    total = sum(map(sum, weights.blocks)) + weights.outside
    assert 1 <= total / (2 * ARCHITECTURES[name].parameters) < 1.12  # tables of positions are no parameters


@pytest.mark.parametrize(
    "name", ["sd15", *(pytest.param(one, marks=pytest.mark.slow) for one in POINTS if one != "sd15")]
)
def test_a_pass_keeps_the_shape_of_the_latents(name: str) -> None:
    with torch.device("meta"):
        ensemble = EnsembleDenoiser([denoiser(name)]).eval()
        call = example(denoiser(name), (16, 24), 1)
        with torch.no_grad():
            predicted = ensemble.predict(call, [call.inputs])
    assert predicted.shape == call.sample.shape
    assert predicted.dtype == torch.float16


@pytest.mark.parametrize(("name", "resident"), [pytest.param("sdxl", 1, marks=pytest.mark.slow), ("flux-dev", 0.6)])
def test_a_placement_counts_what_the_plan_says(name: str, resident: float) -> None:
    """Two experts of a real size; without numbers, they weigh nothing here."""
    with torch.device("meta"):
        ensemble = EnsembleDenoiser([denoiser(name), ARCHITECTURES[name].build().half()])
    plan = make_plan(measure_weights(networks_of(ensemble)), Working(), MemoryConfig(resident=resident, parts="visit"))
    with Placement(ensemble, plan, "meta") as placed:
        for point in ensemble.points:
            for blocks in ensemble.blocks:
                with blocks.there(point):  # type: ignore[attr-defined]
                    pass
    assert 0.9999 * plan.weights < placed.residence.peak <= plan.weights  # alignment aside
