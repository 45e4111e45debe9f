"""TIES: trim, elect signs, and merge what agrees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from diffusemble.config.schema import Schema
from diffusemble.merging.methods.base import Method, Tensors


class TiesOptions(Schema):
    """Options of TIES.

    Attributes:
        density: part of every difference that is kept, the largest first.
        scale: what the merged difference is multiplied with.
    """

    density: float = Field(default=0.2, gt=0, le=1)
    scale: float = 1.0


class Ties(Method):
    """TIES merging (Yadav et al., NeurIPS 2023, arXiv 2306.01708), trimmed tensor by tensor."""

    Options = TiesOptions
    options: TiesOptions
    needs_base = True

    def merge(self, tensors: Tensors, amounts: Sequence[float]) -> Tensor:
        """See ``ties``."""
        change = ties(tensors.experts, tensors.origin, self.options.density)
        return change.mul_(self.options.scale).add_(tensors.origin)


def ties(experts: Sequence[Tensor], base: Float[Tensor, "*size"], density: float) -> Float[Tensor, "*size"]:
    """τ = mean over {i : sign τ̂_i = γ} of τ̂_i, with γ = sign Σ_i τ̂_i, element by element; 0 where none agrees.

    τ̂_i is the difference of expert i from the base, of which the largest entries are kept (see ``trim``).
    """
    elected = torch.zeros_like(base)
    for change in _changes(experts, base, density):
        elected.add_(change)
    elected.sign_()
    total, agreeing = torch.zeros_like(base), torch.zeros_like(base)
    for change in _changes(experts, base, density):  # read again, so that one difference is held at a time
        agrees = (change.sign() == elected).logical_and_(elected != 0)
        total.add_(change.mul_(agrees))
        agreeing.add_(agrees)
    return total.div_(agreeing.clamp_(min=1))


def trim(change: Float[Tensor, "*size"], density: float) -> Float[Tensor, "*size"]:
    """``change`` with zeros for all but its largest entries.

    Of m entries, m·density are kept, at least one, and all that are as large as the last of them.
    """
    kept = max(1, round(change.numel() * density))
    if kept >= change.numel():
        return change
    sizes = change.abs()
    smallest = sizes.flatten().kthvalue(change.numel() - kept + 1).values
    return change * (sizes >= smallest)


def _changes(experts: Sequence[Tensor], base: Tensor, density: float) -> Iterator[Tensor]:
    for index in range(len(experts)):
        yield trim(experts[index] - base, density)
