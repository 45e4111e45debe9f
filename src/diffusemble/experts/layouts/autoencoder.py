"""VAEs in the layout of the original code, and in that of older versions of diffusers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from diffusemble.experts.layouts.origin import Origin, Rule, Shapes, follow

_MIXED: tuple[Rule, ...] = (
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.attn_1\.group_norm\.", ".attn_1.norm."),
    (r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
)
_RULES: tuple[Rule, ...] = (
    *_MIXED,
    (r"\.attn_1\.to_([qkv])\.", r".attn_1.\1."),
    (r"\.attn_1\.to_out\.0\.", ".attn_1.proj_out."),
)
_FLUX2: tuple[Rule, ...] = (
    (r"^quant_conv\.", "encoder.quant_conv."),
    (r"^post_quant_conv\.", "decoder.post_quant_conv."),
)
_OLDER: tuple[Rule, ...] = (
    (r"\.to_q\.", ".query."),
    (r"\.to_k\.", ".key."),
    (r"\.to_v\.", ".value."),
    (r"\.to_out\.0\.", ".proj_attn."),
)


def vae(model: Any, shapes: Shapes) -> dict[str, Origin]:
    """Origins of a VAE's tensors; the original code counts the decoder's levels from the finest."""
    return _original(model, shapes, _RULES)


def mixed_vae(model: Any, shapes: Shapes) -> dict[str, Origin]:
    """The same with diffusers' names in the attention, as its scripts of 2023 wrote them."""
    return _original(model, shapes, _MIXED)


def flux2_vae(model: Any, shapes: Shapes) -> dict[str, Origin]:
    """The same with the outer convolutions inside encoder and decoder, as FLUX.2's own code has them."""
    return _original(model, shapes, (*_RULES, *_FLUX2))


def _original(model: Any, shapes: Shapes, rules: Iterable[Rule]) -> dict[str, Origin]:
    top = len(getattr(model.config, "up_block_types", ())) - 1
    levels = [
        rule
        for level in range(top + 1)
        for rule in (
            (rf"\.up_blocks\.{level}\.resnets\.", f".up.{top - level}.block."),
            (rf"\.up_blocks\.{level}\.upsamplers\.0\.", f".up.{top - level}.upsample."),
        )
    ]
    return follow(shapes, (*rules, *levels))


def older_vae(model: Any, shapes: Shapes) -> dict[str, Origin]:
    """Origins of a VAE's tensors in files of older versions of diffusers."""
    return follow(shapes, _OLDER)
