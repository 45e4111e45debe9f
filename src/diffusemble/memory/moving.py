"""Weights that change places for long."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from diffusemble.memory.bundle import layout


def move(weights: Iterable[Tensor], device: torch.device) -> None:
    """Move weights that are elsewhere, each to memory of its own."""
    for weight in weights:
        if not is_on(weight, device):
            weight.data = weight.data.to(device)


def move_together(weights: Iterable[Tensor], device: torch.device) -> None:
    """Move weights that are elsewhere into one stretch of memory, which is free again once the last has left it.

    One by one they would leave gaps: an allocator reserves more than they take, and a limit counts what is reserved.
    """
    coming = layout(weight for weight in weights if not is_on(weight, device))
    if coming.items:
        flat = torch.empty(coming.bytes, dtype=torch.uint8, device=device)
        for item in coming.items:
            there = item.codes.of(flat)
            there.copy_(item.weight.data)
            item.weight.data = there


def is_on(weight: Tensor, device: torch.device) -> bool:
    """Whether a weight is on ``device``, which may leave open which one of its kind."""
    return weight.device.type == device.type and device.index in (None, weight.device.index)
