"""U-Nets of SD 1.x, SD 2.x and SDXL in the layout of the original code (LDM, SGM)."""

from __future__ import annotations

import re
from typing import Any

from diffusemble.experts.layouts.origin import Origin, Rule, Shapes

_ENDS: tuple[Rule, ...] = (
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^(?:add|class)_embedding\.linear_1\.", "label_emb.0.0."),
    (r"^(?:add|class)_embedding\.linear_2\.", "label_emb.0.2."),
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
)
_RESNET: tuple[Rule, ...] = (
    (r"^norm1\.", "in_layers.0."),
    (r"^conv1\.", "in_layers.2."),
    (r"^time_emb_proj\.", "emb_layers.1."),
    (r"^norm2\.", "out_layers.0."),
    (r"^conv2\.", "out_layers.3."),
    (r"^conv_shortcut\.", "skip_connection."),
)
_INSIDE = re.compile(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)")


def unet(model: Any, shapes: Shapes) -> dict[str, Origin]:
    """Origins of a U-Net's tensors; the original code counts layers through all levels."""
    period = model.config.layers_per_block + 1  # of every level, with what changes the size
    attended = [hasattr(block, "attentions") for block in model.up_blocks]
    return {name: Origin(_key(name, period, attended)) for name in shapes}


def _key(name: str, period: int, attended: list[bool]) -> str:
    found = _INSIDE.fullmatch(name)
    if found is None:
        return _renamed(name, _ENDS)
    way, what, layer, rest = found[1], found[3], int(found[4]), found[5]
    if what == "resnets":
        rest = _renamed(rest, _RESNET)
    if way == "mid":
        return f"middle_block.{2 * layer if what == 'resnets' else 1}.{rest}"
    level = int(found[2])
    if way == "down":
        if what == "downsamplers":
            return f"input_blocks.{(level + 1) * period}.0.{rest.replace('conv.', 'op.')}"
        return f"input_blocks.{1 + level * period + layer}.{int(what == 'attentions')}.{rest}"
    if what == "upsamplers":
        return f"output_blocks.{(level + 1) * period - 1}.{2 if attended[level] else 1}.{rest}"
    return f"output_blocks.{level * period + layer}.{int(what == 'attentions')}.{rest}"


def _renamed(name: str, rules: tuple[Rule, ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
