"""MIGC against numbers of the published modules, with random weights (tests/golden/amdm)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from safetensors import safe_open

from diffusemble.controls.base import Call
from diffusemble.controls.migc import MigcCondition
from diffusemble.controls.migc_layers import LayerSizes, MigcLayer
from diffusemble.controls.migc_processors import FusedProcessor, MigcProcessor, place
from diffusemble.controls.storage import fill

GOLDEN = Path(__file__).parents[1] / "golden" / "amdm" / "migc_processor.safetensors"
HEIGHT, WIDTH, GRID = 128, 64, (8, 4)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with safe_open(str(GOLDEN), "pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        scales = json.loads(opened.metadata()["scales_case"])
    return {**{key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}, **scales}


@pytest.fixture(scope="module")
def layer(golden: dict[str, Any]) -> MigcLayer:
    layer = MigcLayer(LayerSizes(channels=16))
    start = "weight.migc."
    fill(layer, {key[len(start) :]: value for key, value in golden.items() if key.startswith(start)}, GOLDEN)
    return layer.eval()


@pytest.fixture(scope="module")
def cross(golden: dict[str, Any]) -> Attention:
    attention = Attention(16, cross_attention_dim=24, heads=8, dim_head=2)
    start = "weight.attn."
    fill(attention, {key[len(start) :]: value for key, value in golden.items() if key.startswith(start)}, GOLDEN)
    return attention.eval()


def condition(golden: dict[str, Any], order: str) -> MigcCondition:
    """The golden instances, in the slots that the reference drew: ``perm[place]`` is the instance there."""
    slots = golden[order].argsort()[:3]
    text, pooled = golden["in.encoder_hidden_states"][2:], golden["in.embeds_pooler"][1:, 0]
    return MigcCondition(text, pooled, golden["in.bboxes"], HEIGHT, WIDTH, slots=slots)


def placed(golden: dict[str, Any], order: str = "perm.migc", **changes: Any) -> Any:
    call = Call(torch.zeros(2, 4, 16, 8), 0, golden["in.encoder_hidden_states"][:2], guided=True)
    return place([replace(condition(golden, order), **changes)], call)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def run(processor: Any, cross: Attention, golden: dict[str, Any]) -> torch.Tensor:
    cross.set_processor(processor)
    with torch.no_grad():
        return cross(golden["in.hidden_states"], encoder_hidden_states=golden["in.encoder_hidden_states"][:2])


@pytest.mark.parametrize("case", ["migc", "migc_last_step"])
def test_the_processor(golden, layer, cross, case):
    processor = MigcProcessor(layer, 0, placed(golden, f"perm.{case}"), AttnProcessor2_0())
    close(run(processor, cross, golden), golden[f"out.{case}"])


def test_the_scales(golden, layer, cross):
    names = {"ca_scale": "text_scale", "ea_scale": "enhancement_scale", "sac_scale": "weight_scale"}
    scaled = placed(golden, "perm.migc_scaled", **{ours: tuple(golden[theirs]) for theirs, ours in names.items()})
    close(run(MigcProcessor(layer, 0, scaled, AttnProcessor2_0()), cross, golden), golden["out.migc_scaled"])


@pytest.mark.parametrize("case", ["naive", "plain_layer_naive"])
def test_texts_weighed_by_masks(golden, cross, case):
    close(run(FusedProcessor(placed(golden), AttnProcessor2_0()), cross, golden), golden[f"out.{case}"])


@pytest.mark.parametrize("case", ["vanilla", "plain_layer_vanilla", "zero_instances"])
def test_without_control_the_plain_attention_is_right(golden, cross, case):
    close(run(AttnProcessor2_0(), cross, golden), golden[f"out.{case}"])


def test_the_masks(golden):
    given = condition(golden, "perm.inner")
    for grid, name in (((16, 8), "latent"), (GRID, "feature")):
        masks = given.masks((16, 8), grid, torch.device("cpu"))
        close(masks.instances.unflatten(1, grid)[None, ..., 0], golden[f"inner.guidance_masks_{name}"])
        close(masks.rest.unflatten(1, grid)[None, ..., 0], golden[f"inner.supplement_mask_{name}"])


def test_the_pieces(golden, layer):
    there = placed(golden, "perm.inner")
    instances, masks, together = there.instances, there.masks(32), there.together(32)
    hidden, own = golden["in.hidden_states"][1:], golden["inner.cond_cross_attention"]
    with torch.no_grad():
        close(layer.pos_net(instances.boxes)[:, None], golden["inner.box_token"])
        enhanced = layer.enhance(hidden, instances)
        close(enhanced, golden["inner.enhance_attention"])
        layout = layer.la(hidden, hidden, together)
        close(layout, golden["inner.layout_attention"])
        shaded = (own[1:] + enhanced) * masks.instances
        weights = layer.sac.weights(own[:1] * masks.rest, shaded, layout, instances, masks)
        used = weights[:, [0, *(1 + instances.slots).tolist(), -1]]
        close(used, golden["inner.sac_weights"])
        close(layer(hidden, own[:1], own[1:], instances, masks, together)[None], golden["inner.migc_output"])
    assert torch.equal(used.sum(dim=1).round(decimals=5), torch.ones(1, *GRID))
