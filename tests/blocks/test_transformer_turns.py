"""Routers choose among FLUX and SD3 experts as among U-Nets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from diffusemble import EnsembleDenoiser, build_aggregator
from law_families import TRANSFORMERS
from laws import a_call, denoisers, disturb
from transformer_cases import CASES


def turn_by_turn(point: int, feature: Any, context: Any) -> torch.Tensor:
    """Every sample by another expert than its neighbour's, and than at the block before."""
    return torch.eye(2)[[(row + point) % 2 for row in range(len(feature))]]


@pytest.mark.parametrize("name", ["flux-plain", "flux-controlnet", "chroma-mask", "sd3.5-controlnet", "sd3.5-skip"])
def test_copies_of_one_expert_take_turns_without_a_trace(name: str) -> None:
    case = CASES[name]
    model = case.model()
    ensemble = EnsembleDenoiser([model, model], build_aggregator("mixture-blocks", [model] * 2, preset="tiny")).eval()
    ensemble.aggregator.route = turn_by_turn
    arguments = case.arguments(model)
    for packed in {"encoder_hidden_states", "pooled_projections"} & arguments.keys():
        arguments[packed] = torch.cat([arguments[packed]] * 2, dim=1)
    with torch.no_grad():
        theirs = model(**case.arguments(model)).sample
        torch.testing.assert_close(ensemble(**arguments).sample, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mixture-blocks", "mixture-denoisers"])
@pytest.mark.parametrize("family", TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_gates_with_gradients_learn_and_draw_what_is_chosen(name: str, family: Any) -> None:
    models, call = denoisers(1, 2, dtype=torch.float32, family=family), a_call(2, torch.float32, family=family)
    aggregator = build_aggregator(name, models, preset="tiny")
    disturb(aggregator)
    ensemble = EnsembleDenoiser(models, aggregator).train()
    torch.manual_seed(0)
    ensemble(**call.arguments()).sample.square().mean().backward()
    assert all(one.grad is not None and one.grad.any() for one in aggregator.parameters())
    assert call.of(ensemble.eval()).isfinite().all()


def test_the_timestep_of_flux_switches_in_the_samplers_unit() -> None:
    family = TRANSFORMERS["flux"]
    models, call = denoisers(1, 2, family=family), a_call(2, family=family)
    ensemble = EnsembleDenoiser(models, build_aggregator("timestep-switch", models, thresholds=[500])).eval()
    call = replace(call, timestep=torch.tensor([800.0, 100.0]))
    torch.testing.assert_close(call.of(ensemble)[:1], call.alone(models[0], 0)[:1])
    torch.testing.assert_close(call.of(ensemble)[1:], call.alone(models[1], 1)[1:])
