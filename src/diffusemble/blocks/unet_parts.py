"""Pieces of a U-Net's down and up blocks, one aggregation point each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffusemble.blocks.base import Flow


def run_layer(block: Any, index: int, flow: Flow, hidden: Tensor | None = None) -> Tensor:
    """One resnet and, where the block has them, the attention behind it."""
    hidden = flow.hidden if hidden is None else hidden
    resnet = block.resnets[index]
    if torch.is_grad_enabled() and block.gradient_checkpointing:
        hidden = block._gradient_checkpointing_func(resnet, hidden, flow.time)
    else:
        hidden = resnet(hidden, flow.time)
    if not hasattr(block, "attentions"):
        return hidden
    return block.attentions[index](hidden, **flow.extra.attention, return_dict=False)[0]


def layer_modules(block: Any, index: int, last: str = "") -> tuple[nn.Module, ...]:
    """What ``run_layer`` runs; after a block's last layer also its samplers ``last``."""
    mine = [getattr(block, kind)[index] for kind in ("resnets", "attentions") if hasattr(block, kind)]
    samplers = getattr(block, last) if last and index == len(block.resnets) - 1 else None
    return (*mine, *(samplers or ()))


def downsample(block: Any, flow: Flow) -> Tensor:
    """The samplers at the end of a down block."""
    return chain(block.downsamplers, flow.hidden)


def chain(samplers: Any, hidden: Tensor, *size: Any) -> Tensor:
    """Samplers one after the other; ``size`` where they are told what to meet."""
    for sampler in samplers:
        hidden = sampler(hidden, *size)
    return hidden
