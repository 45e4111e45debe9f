"""The block schedule refuses what it would otherwise ignore, and names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from diffusemble.blocks.base import run_through
from diffusemble.blocks.unet import UNetBlocks
from tiny import tiny_unet
from unet_inputs import adapter, controlnet, plain_inputs, randn


def _half(name: str) -> Callable[..., dict[str, Any]]:
    def give(unet: UNet2DConditionModel, sample: Tensor) -> dict[str, Any]:
        both = {**controlnet(unet, sample), **adapter(unet, sample)}
        return {key: both[key] for key in (name, "down_intrablock_additional_residuals")}

    return give


def _changed(name: str, change: Callable[[list[Tensor]], list[Tensor]]) -> Callable[..., dict[str, Any]]:
    def give(unet: UNet2DConditionModel, sample: Tensor) -> dict[str, Any]:
        given = controlnet(unet, sample) if name == "down_block_additional_residuals" else adapter(unet, sample)
        return {**given, name: change(list(given[name]))}

    return give


DOWN, MID, INTRA = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)
REFUSED = {
    "unknown": (lambda *_: {"sketch": 1}, "does not support the argument 'sketch'. Leave it out"),
    "no text": (lambda *_: {"encoder_hidden_states": None}, "needs encoder_hidden_states: pass the embedded prompt"),
    "half a ControlNet, skips": (_half(DOWN), f"{DOWN} came without {MID}. A ControlNet gives both"),
    "a ControlNet without its middle": (
        lambda *args: {DOWN: controlnet(*args)[DOWN]},
        f"{DOWN} came without {MID}. A ControlNet gives both; pass both, or leave both out",
    ),
    "half a ControlNet, middle": (_half(MID), f"{MID} came without {DOWN}. A ControlNet gives both"),
    "few skips": (
        _changed(DOWN, lambda maps: maps[:-1]),
        f"{DOWN} has 11 tensors, but this U-Net keeps 12 skip connections. Use a ControlNet made for",
    ),
    "many maps": (_changed(INTRA, lambda maps: maps * 2), f"{INTRA} has 8 tensors, but this U-Net takes at most 5"),
    "other maps": (
        _changed(INTRA, lambda maps: [maps[0], maps[1][..., :1, :1]]),
        rf"{INTRA}: the map for down.1.layer1 has the shape \(2, 16, 1, 1\), but the feature there is \(2, 16, 4, 4\)",
    ),
    "labels": (lambda *_: {"class_labels": torch.tensor([1, 2])}, "class_labels was given, but .* no class embedding"),
    "guidance": (lambda *_: {"timestep_cond": randn(2, 6)}, "timestep_cond was given, .* no projection for it"),
    "boxes": (
        lambda *_: {"cross_attention_kwargs": {"gligen": {}}},
        r"kwargs\['gligen'\] was given, .*no GLIGEN layer",
    ),
    "masks of image prompts": (
        lambda *_: {"cross_attention_kwargs": {"scale": 1.0, "ip_adapter_masks": [torch.ones(1, 1, 8, 8)]}},
        r"cross_attention_kwargs\['ip_adapter_masks'\] was given, .* no attention that reads it",
    ),
    "several": (  # the first in order, whatever order a set has
        lambda *_: {"cross_attention_kwargs": dict.fromkeys("fedcba", 1)},
        r"cross_attention_kwargs\['a'\] was given",
    ),
    "images": (
        lambda *_: {"added_cond_kwargs": {"image_embeds": [randn(2, 1, 12)]}},
        r"added_cond_kwargs\['image_embeds'\] was given, .* no layer that reads it, so it would change nothing",
    ),
    "pooled text": (
        lambda *_: {"added_cond_kwargs": {"text_embeds": randn(2, 8)}},
        r"added_cond_kwargs\['text_embeds'\]",
    ),
}


@pytest.mark.parametrize(("give", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_ignored_is_refused_by_name(give: Callable[..., dict[str, Any]], message: str):
    unet = tiny_unet()
    sample = randn(2, 4, 8, 8)
    with pytest.raises(ValueError, match=message):
        run_through(UNetBlocks(unet), sample, 7, {**plain_inputs(unet), **give(unet, sample)})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mid_block_type": "UNetMidBlock2D"}, "know the U-Net blocks .*; this U-Net has a UNetMidBlock2D. Fuse its"),
        ({"down_block_types": ("KDownBlock2D",) + ("CrossAttnDownBlock2D",) * 3}, "this U-Net has a KDownBlock2D"),
        (
            {"addition_embed_type": "image_hint", "encoder_hid_dim": 8, "encoder_hid_dim_type": "image_proj"},
            "do not support addition_embed_type='image_hint'",
        ),
    ],
)
def test_unets_of_other_kinds_are_refused(config: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        UNetBlocks(tiny_unet(**config))
