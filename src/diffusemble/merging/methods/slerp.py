"""Spherical interpolation of two models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffusemble.config.schema import Schema
from diffusemble.merging.methods.base import Method, Tensors, normalised

PARALLEL = 1e-4  # sine of the angle below which a straight line is the same to eight digits


class SlerpOptions(Schema):
    """Options of spherical interpolation.

    Attributes:
        shares: one number for each of the two experts; the second's part of their sum is how far to go. Equal by
            default.
    """

    shares: tuple[float, ...] | None = None


class Slerp(Method):
    """Spherical interpolation, tensor by tensor, of exactly two models: of more, the result depends on their order."""

    Options = SlerpOptions
    options: SlerpOptions
    exactly = 2
    weighs = "shares"

    def weigh(self) -> tuple[float, ...]:
        """Two shares that sum to one."""
        return normalised(self.options.shares, self.count, "Slerp")

    def merge(self, tensors: Tensors, amounts: Sequence[float]) -> Tensor:
        """See ``slerp``."""
        return slerp(tensors.experts[0], tensors.experts[1], amounts[1])


def slerp(first: Float[Tensor, "*size"], second: Float[Tensor, "*size"], step: float) -> Float[Tensor, "*size"]:
    """θ = ((1−t)|A| + t|B|) · (sin((1−t)Ω) A/|A| + sin(tΩ) B/|B|) / sin Ω, with Ω the angle between A and B.

    The direction moves on the arc (Shoemake, SIGGRAPH 1985), the length on a line. Where the two are nearly parallel or
    opposite, or one is zero, the arc is not defined or is a line: then θ = (1−t) A + t B.
    """
    lengths = float(first.norm()), float(second.norm())
    scale = lengths[0] * lengths[1]
    angle = math.acos(max(-1.0, min(1.0, float((first * second).sum()) / scale))) if scale > 0 else 0.0
    if math.sin(angle) < PARALLEL:
        return torch.lerp(first, second, step)
    length = (1 - step) * lengths[0] + step * lengths[1]
    on_first = length * math.sin((1 - step) * angle) / math.sin(angle) / lengths[0]
    on_second = length * math.sin(step * angle) / math.sin(angle) / lengths[1]
    return (first * on_first).add_(second, alpha=on_second)
