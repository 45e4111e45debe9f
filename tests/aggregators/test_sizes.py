"""Parameters and cost of SABW for real Stable Diffusion, counted without allocating anything."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from cost import SIZES, Cost, count_costs, count_flops
from diffusers import AutoencoderKL, UNet2DConditionModel

from diffusemble import build_aggregator
from diffusemble.aggregators.base import Aggregator

SD15_CHANNELS = (320,) * 4 + (640,) * 3 + (1280,) * 12 + (640,) * 3 + (320,) * 2 + (4,)
SDXL_CHANNELS = (320,) * 4 + (640,) * 3 + (1280,) * 2 + (1280,) + (1280,) * 3 + (640,) * 3 + (320,) * 2 + (4,)


@cache
def real(size: str) -> UNet2DConditionModel:
    """A U-Net of real size without memory."""
    with torch.device("meta"):
        return UNet2DConditionModel(**SIZES[size].config)


def aggregator(size: str, n: int, **options: Any) -> Aggregator:
    with torch.device("meta"):
        return build_aggregator("sabw", [real(size)] * n, **options)


def parameters(built: Aggregator) -> int:
    return sum(parameter.numel() for parameter in built.parameters())


@pytest.mark.parametrize(
    ("size", "n", "millions"),
    [("sd15", 2, 42.425), ("sd15", 3, 45.132), ("sd15", 6, 53.254), ("sdxl", 2, 44.027), ("sdxl", 3, 45.750)],
)
def test_paper_preset_has_the_published_sizes(size: str, n: int, millions: float):
    assert round(parameters(aggregator(size, n, preset="paper")) / 1e6, 3) == millions


@pytest.mark.parametrize(("preset", "millions"), [("lite", 32.8), ("lite-pooled", 32.8), ("small", 12.5)])
def test_smaller_presets(preset: str, millions: float):
    assert round(parameters(aggregator("sd15", 3, preset=preset)) / 1e6, 1) == millions


@pytest.mark.parametrize(("size", "channels", "text"), [("sd15", SD15_CHANNELS, 768), ("sdxl", SDXL_CHANNELS, 2048)])
def test_sizes_follow_the_closed_form(size: str, channels: Sequence[int], text: int):
    built = aggregator(size, 3, preset="paper")
    assert built.sizes.channels == channels
    assert len(channels) == {"sd15": 25, "sdxl": 19}[size]
    expected = sum(sabw_parameters(3, c, width=128, layers=2, time=1280, text=text) for c in channels)
    assert parameters(built) == expected


def sabw_parameters(n: int, channels: int, width: int, layers: int, time: int, text: int) -> int:
    """Weights and biases of one point, from the description of the method."""
    d = width
    norm, convolution = 2 * d, 9 * d * d + d
    residual = 2 * (norm + convolution) + time * d + d
    self_attention = 4 * d * d + d
    cross_attention = 2 * d * d + 2 * text * d + d
    feed_forward = d * 8 * d + 8 * d + 4 * d * d + d
    layer = 3 * norm + self_attention + cross_attention + feed_forward
    transformer = norm + 2 * (d * d + d) + layers * layer
    return (n * channels * d + d) + residual + transformer + d * n


@cache
def costs() -> dict[str, Cost]:
    return count_costs(SIZES["sd15"], experts=3)


def test_one_forward_of_sd15_costs_what_is_known():
    one = costs()["one U-Net"]
    assert round(one.total / 1e9, 1) == 803.3
    assert round((one.total - one.attention) / 1e9, 1) == 677.2


def test_the_published_cost_of_a_picture_leaves_attention_out():
    # 50 steps with guidance and one decoding to 512 pixels: the paper says 70.24 TFLOP.
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        decoding = count_flops(lambda: vae.decode(torch.empty(1, 4, 64, 64)))
    one = costs()["one U-Net"]
    picture = 50 * 2 * (one.total - one.attention) + decoding.total - decoding.attention
    assert picture / 1e12 == pytest.approx(70.24, abs=0.1)


@pytest.mark.parametrize(("preset", "share"), [("paper", 26.0), ("lite", 15.0), ("lite-pooled", 5.7), ("small", 6.3)])
def test_share_of_sabw_in_one_forward(preset: str, share: float):
    extra = costs()[f"ensemble, SABW {preset}"].total - costs()["3 in sequence"].total
    assert 100 * extra / costs()["one U-Net"].total == pytest.approx(share, abs=0.5)
