"""Cosine merging: what is similar in both models is taken from the first, what differs from the second."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusemble.config.schema import Schema
from diffusemble.merging.methods.base import Method, Tensors


@dataclass(frozen=True)
class Range:
    """Smallest and largest similarity of two models, without the outermost hundredths."""

    low: float
    high: float


class CosineOptions(Schema):
    """Options of cosine merging.

    Attributes:
        ratio: how far the balance moves towards the second expert; at 1 all is the second's, but for the columns that
            are more alike than 99 in 100.
    """

    ratio: float = 0.0


class Cosine(Method):
    """Similarity-dependent blend, as in the merging tools for Stable Diffusion; it has no paper."""

    Options = CosineOptions
    options: CosineOptions
    exactly = 2
    weighs = "ratios"

    def __init__(self, options: CosineOptions, count: int, found: Range | None = None) -> None:
        super().__init__(options, count)
        self.range = found

    def weigh(self) -> tuple[float, ...]:
        """The ratio of the second expert."""
        return (self.options.ratio,)

    def prepare(self, everything: Iterable[Tensors]) -> Cosine:
        """Measure how similar the two models are, everywhere."""
        all_of_them = [similarity(one.experts[0], one.experts[1]).flatten().float() for one in everything]
        return Cosine(self.options, self.count, trimmed_range(torch.cat(all_of_them)))

    def merge(self, tensors: Tensors, amounts: Sequence[float]) -> Tensor:
        """See ``cosine``."""
        if self.range is None:
            raise ValueError("Cosine merging needs a pass over all tensors first. Call prepare, and use what it gives.")
        return cosine(tensors.experts[0], tensors.experts[1], amounts[0], self.range)


def cosine(
    first: Float[Tensor, "*size"], second: Float[Tensor, "*size"], ratio: float, found: Range
) -> Float[Tensor, "*size"]:
    """θ = k A + (1 − k) B, with k = clip((s − s_min) / (s_max − s_min) − a, 0, 1).

    s is the similarity of every column (see there), a the ratio. Where all similarities are one, (s − s_min) / (s_max −
    s_min) counts as 1.
    """
    spread = found.high - found.low
    alike = similarity(first, second)
    relative = (alike - found.low) / spread if spread > 0 else torch.ones_like(alike)
    keep = (relative - ratio).clamp_(0, 1)
    return (first - second).mul_(keep).add_(second)


def similarity(first: Float[Tensor, "*size"], second: Float[Tensor, "*size"]) -> Tensor:
    """s = (cos(A_j, B_j) + cos(A, B)) / 2 for every column j, which lies along the first axis.

    The result has the size of a tensor without its first axis. The cosine of two zero vectors counts as 1, that of one
    and another vector as 0.
    """
    one, other = torch.atleast_1d(first), torch.atleast_1d(second)
    return (_cosine(one, other) + _cosine(one.flatten(), other.flatten())) / 2


def trimmed_range(similarities: Float[Tensor, " m"]) -> Range:
    """Smallest and largest of the values from the 1st to the 99th percentile."""
    ordered = similarities.sort().values
    last = len(ordered) - 1
    # The first value that is not below the percentile, whichever way one interpolates between two.
    return Range(float(ordered[-(-last // 100)]), float(ordered[99 * last // 100]))


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    lengths = one.norm(dim=0), other.norm(dim=0)
    product = (one * other).sum(dim=0) / (lengths[0] * lengths[1])
    return torch.where((lengths[0] == 0) & (lengths[1] == 0), 1.0, torch.nan_to_num_(product, nan=0.0)).clamp_(-1, 1)
