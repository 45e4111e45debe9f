"""Add difference: what fine-tuning changed in other models is added to the first one."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from diffusemble.config.schema import Schema
from diffusemble.merging.methods.base import Method, Tensors


class AddDifferenceOptions(Schema):
    """Options of add difference.

    Attributes:
        ratio: how much of the difference is added; one number, or one for every expert after the first.
    """

    ratio: float | tuple[float, ...] = 1.0


class AddDifference(Method):
    """Add difference (task arithmetic, arXiv 2212.04089, from the first expert on)."""

    Options = AddDifferenceOptions
    options: AddDifferenceOptions
    needs_base = True
    weighs = "ratios"

    def weigh(self) -> tuple[float, ...]:
        """One ratio for every expert after the first."""
        ratio, further = self.options.ratio, self.count - 1
        ratios = (ratio,) * further if isinstance(ratio, float) else ratio
        if len(ratios) != further:
            raise ValueError(
                f"ratio is one number, or one for every expert after the first; got {len(ratios)} numbers for "
                f"{self.count} experts. Give {further}, or a single one."
            )
        return ratios

    def merge(self, tensors: Tensors, amounts: Sequence[float]) -> Tensor:
        """See ``add_difference``."""
        return add_difference(tensors.experts, tensors.origin, amounts)


def add_difference(
    experts: Sequence[Tensor], base: Float[Tensor, "*size"], ratios: Sequence[float]
) -> Float[Tensor, "*size"]:
    """θ = A + Σ_i a_i (B_i − C), for experts A, B_1, B_2 ..., base C and ratios a."""
    total = experts[0].clone()
    for index, ratio in enumerate(ratios, start=1):
        if ratio != 0:
            total.add_(experts[index] - base, alpha=ratio)
    return total
