"""What routers and pooled tokens save, in operations."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffusemble import EnsembleDenoiser, build_aggregator
from diffusemble.description import describe
from tiny import tiny_unet

TINY = {"mixture-blocks": {"preset": "tiny"}, "mixture-denoisers": {"preset": "tiny"}, "timestep-switch": {}}


@pytest.mark.parametrize("name", TINY)
def test_the_cost_is_that_of_the_whole_forward(name: str) -> None:
    unets = [tiny_unet(seed) for seed in range(3)]
    ensemble = EnsembleDenoiser(unets, build_aggregator(name, unets, **TINY[name])).eval()
    # Taken apart into matrix products, as on the meta device; the counter does not know a CPU's fused attention.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        ensemble(torch.randn(1, 4, 8, 8), torch.tensor(1), torch.randn(1, 3 * 77, 32))
    found = describe(ensemble)
    assert found.ensemble_flops == counter.get_total_flops()


def test_experts_that_switch_cost_little_more_than_one() -> None:
    found = describe(EnsembleDenoiser([tiny_unet(seed) for seed in range(3)], "timestep-switch"))
    assert 1 < found.ratio < 1.01  # all embed the time


def test_points_of_a_router_are_where_it_chooses() -> None:
    unets = [tiny_unet(seed) for seed in range(2)]
    found = describe(EnsembleDenoiser(unets, build_aggregator("mixture-denoisers", unets, preset="tiny")))
    assert [point.name for point in found.points if point.aggregated] == ["conv_in"]
    assert found.aggregator.startswith("mixture-denoisers (width 16, ")
