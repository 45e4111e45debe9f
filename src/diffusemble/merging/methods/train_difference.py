"""Train difference: add difference, scaled as if the first model were trained towards the second."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffusemble.config.schema import Schema
from diffusemble.merging.methods.base import Method, Tensors

STRENGTH = 1.8  # which makes the mean change as large as that of add difference, by the method's author


class TrainDifferenceOptions(Schema):
    """Options of train difference.

    Attributes:
        ratio: how much of the difference is added.
    """

    ratio: float = 1.0


class TrainDifference(Method):
    """Train difference, as in the merging tools for Stable Diffusion; it has no paper."""

    Options = TrainDifferenceOptions
    options: TrainDifferenceOptions
    exactly = 2
    needs_base = True
    weighs = "ratios"

    def weigh(self) -> tuple[float, ...]:
        """The ratio of the second expert."""
        return (self.options.ratio,)

    def merge(self, tensors: Tensors, amounts: Sequence[float]) -> Tensor:
        """See ``train_difference``."""
        return train_difference(tensors.experts[0], tensors.experts[1], tensors.origin, amounts[0])


def train_difference(
    first: Float[Tensor, "*size"], second: Float[Tensor, "*size"], base: Float[Tensor, "*size"], ratio: float
) -> Float[Tensor, "*size"]:
    """θ = A + 1.8 a s d, with d = B − C, s = r / (|d| + r) and r = |B − A|, element by element.

    Where A is at B already (r = 0), or B is the base (d = 0), A stays as it is: s is 0 where both are.
    """
    change = second - base
    distance = (second - first).abs_()
    scale = distance / (change.abs() + distance)
    return first + torch.nan_to_num_(scale, nan=0.0).mul_(change).mul_(STRENGTH * ratio)
