from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from diffusemble import EnsembleDenoiser, build_aggregator, load_experts
from diffusemble.description import describe, latent_size
from tiny import UNET, as_expert, tiny_sdxl_unet, tiny_unet
from tiny_dit import tiny_flux_pipeline
from tiny_qwen import tiny_qwen_pipeline


def test_stable_diffusion_costs_what_it_costs() -> None:
    with torch.device("meta"):
        unets = [UNet2DConditionModel(sample_size=64, cross_attention_dim=768) for _ in range(3)]
        found = describe(EnsembleDenoiser(unets, build_aggregator("sabw", unets, preset="paper")))
    assert found.experts[0].parameters == 859_520_964
    assert found.aggregator_parameters == 45_132_416
    assert found.expert_flops == pytest.approx(803.3e9, rel=1e-4)  # attention's matrix products included
    assert found.ratio == pytest.approx(3.26, abs=0.01)
    assert found.latents == (4, 64, 64)
    assert [(point.name, point.channels, point.grid) for point in found.points[:: len(found.points) // 2]] == [
        ("conv_in", 320, (64, 64)),
        ("mid", 1280, (8, 8)),
        ("up.3.layer2", 4, (64, 64)),
    ]
    assert [point.grid for point in found.points[8:11]] == [(16, 16), (8, 8), (8, 8)]


def test_the_mean_costs_its_experts_and_nothing_more() -> None:
    found = describe(EnsembleDenoiser([tiny_unet(0), tiny_unet(1)]))
    assert found.ratio == 2.0
    assert found.aggregator == "mean (points all)"
    assert found.aggregator_parameters == 0


def test_fusing_predictions_costs_its_experts_and_nothing_more() -> None:
    unets = [tiny_unet(0), tiny_unet(1)]
    found = describe(EnsembleDenoiser(unets, build_aggregator("magicfusion", unets, below=600)))
    assert (found.ratio, found.aggregator_parameters) == (2.0, 0)
    assert found.aggregator.startswith("magicfusion (points last, guidance 7.5, kernel reference")
    assert "below 600" in found.aggregator
    assert "above" not in found.aggregator
    assert [point.name for point in found.points if point.aggregated] == ["up.3.layer2"]


def test_the_cost_is_that_of_the_whole_forward() -> None:
    with torch.device("meta"):
        unets = [UNet2DConditionModel(**UNET) for _ in range(2)]
        ensemble = EnsembleDenoiser(unets, build_aggregator("sabw", unets, preset="tiny")).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            ensemble(torch.zeros(1, 4, 8, 8), torch.tensor(1), torch.zeros(1, 2 * 77, 32))
    assert describe(ensemble).ensemble_flops == counter.get_total_flops()


def test_points_that_are_not_aggregated_are_shown_as_such() -> None:
    unets = [tiny_unet(0), tiny_unet(1)]
    found = describe(EnsembleDenoiser(unets, build_aggregator("mean", unets, points=(3, 24))))
    assert [point.name for point in found.points if point.aggregated] == ["down.0.downsample", "up.3.layer2"]


def test_sdxl_takes_its_added_conditions() -> None:
    found = describe(EnsembleDenoiser([tiny_sdxl_unet(seed) for seed in range(3)]))
    assert len(found.points) == 19
    assert found.ratio == 3.0


def test_another_size_costs_more() -> None:
    ensemble = EnsembleDenoiser([tiny_unet(0)])
    small, large = describe(ensemble), describe(ensemble, (16, 24))
    assert large.expert_flops > 4 * small.expert_flops
    assert (large.latents, large.points[0].grid) == ((4, 16, 24), (16, 24))


def test_loaded_experts_come_with_source_and_text_encoder(folders: tuple[str, ...]) -> None:
    ensemble = EnsembleDenoiser(load_experts(folders))
    found = describe(ensemble)
    assert [(expert.name, expert.source) for expert in found.experts] == [("rock", folders[0]), ("fern", folders[1])]
    encoder = ensemble.experts[0].components["text_encoder"]
    assert found.experts[0].text_parameters == sum(parameter.numel() for parameter in encoder.parameters())
    assert latent_size(ensemble, 24, 32) == (12, 16)


@pytest.mark.parametrize("build", [tiny_flux_pipeline, tiny_qwen_pipeline])
def test_packed_latents_are_told_as_the_vae_makes_them(build: Callable[[], Any]) -> None:
    ensemble = EnsembleDenoiser([as_expert(build())])
    assert describe(ensemble, latent_size(ensemble, 24, 32)).latents == (4, 12, 16)


def test_bare_denoisers_have_no_size_in_pixels() -> None:
    with pytest.raises(ValueError, match=r"bare denoisers, without a VAE .* Leave the size out"):
        latent_size(EnsembleDenoiser([tiny_unet()]), 24, 32)
