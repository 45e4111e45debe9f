"""Every argument of a denoiser's ``forward`` is known here: one that diffusers adds must be supported, or refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)

from diffusemble import EnsembleDenoiser
from diffusemble.registry import BLOCKS
from tiny_qwen import tiny_qwen
from transformer_cases import CASES as TRANSFORMERS
from unet_cases import CASES as UNETS

FLUX = {
    *("img_ids", "txt_ids", "joint_attention_kwargs"),
    *("controlnet_block_samples", "controlnet_single_block_samples", "controlnet_blocks_repeat"),
}
SUPPORTED = {
    UNet2DConditionModel: {
        *("sample", "class_labels", "timestep_cond", "attention_mask", "encoder_attention_mask"),
        *("cross_attention_kwargs", "added_cond_kwargs", "down_intrablock_additional_residuals"),
        *("down_block_additional_residuals", "mid_block_additional_residual"),
    },
    FluxTransformer2DModel: {*FLUX, "hidden_states", "pooled_projections", "guidance"},
    Flux2Transformer2DModel: {"hidden_states", "guidance", "img_ids", "txt_ids", "joint_attention_kwargs"},
    ChromaTransformer2DModel: {*FLUX, "hidden_states", "attention_mask"},
    SD3Transformer2DModel: {
        *("hidden_states", "pooled_projections", "block_controlnet_hidden_states"),
        *("joint_attention_kwargs", "skip_layers"),
    },
    QwenImageTransformer2DModel: {
        *("hidden_states", "encoder_hidden_states_mask", "img_shapes"),
        *("attention_kwargs", "controlnet_block_samples"),
    },
    ZImageTransformer2DModel: {"controlnet_block_samples", "joint_attention_kwargs"},
}
REFUSED = {
    QwenImageTransformer2DModel: {"guidance", "additional_t_cond"},
    Flux2Transformer2DModel: {"kv_cache", "kv_cache_mode", "num_ref_tokens", "ref_fixed_timestep"},
    ZImageTransformer2DModel: {"siglip_feats", "image_noise_mask", "patch_size", "f_patch_size"},
}
APART = {QwenImageTransformer2DModel, ZImageTransformer2DModel, Flux2Transformer2DModel}
"""With tests of their own."""
ALWAYS = {"self", "timestep", "encoder_hidden_states", "return_dict"}
RENAMED = {ZImageTransformer2DModel: {"self", "x", "t", "cap_feats", "return_dict"}}

UNETS_WITH_ALL = (
    *("sdxl-plain", "sd1-text-mask", "sd1-controlnet-adapter", "sd1-lora", "sd1-labels", "sd1-guidance-embedding"),
    "attention-mask",
)


def test_every_schedule_is_looked_at() -> None:
    assert {cls.__name__ for cls in SUPPORTED} == set(BLOCKS)


@pytest.mark.parametrize("cls", SUPPORTED)
def test_forward_takes_what_is_known_and_nothing_else(cls: type[Any]) -> None:
    known = RENAMED.get(cls, ALWAYS) | SUPPORTED[cls] | REFUSED.get(cls, set())
    assert set(inspect.signature(cls.forward).parameters) == known


def test_every_supported_argument_is_compared_bit_for_bit() -> None:
    given: dict[type, set[str]] = {cls: set() for cls in SUPPORTED}
    for name in UNETS_WITH_ALL:
        unet = UNETS[name].unet()
        given[UNet2DConditionModel] |= {"sample", *UNETS[name].inputs(unet)}
    for case in TRANSFORMERS.values():
        model = case.build()
        given[type(model)] |= set(case.plain(model)) | set(case.give(model, 35))
    for cls in SUPPORTED.keys() - APART:
        assert given[cls] >= SUPPORTED[cls], cls


@pytest.mark.parametrize("name", sorted(REFUSED[QwenImageTransformer2DModel]))
def test_what_is_not_supported_is_refused_by_name(name: str) -> None:
    model: Callable[..., Any] = EnsembleDenoiser([tiny_qwen()])
    text = torch.zeros(1, 7, 16)
    with pytest.raises(ValueError, match=f"does not support the argument '{name}'"):
        model(torch.zeros(1, 35, 16), text, timestep=torch.ones(1), img_shapes=[[(1, 5, 7)]], **{name: torch.ones(1)})
