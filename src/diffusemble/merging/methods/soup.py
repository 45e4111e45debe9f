"""Model soup: the uniform mean."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from diffusemble.merging.methods.base import Method, Tensors, normalised
from diffusemble.merging.methods.weighted import weighted


class Soup(Method):
    """Uniform mean of n models fine-tuned from one (model soups, arXiv 2203.05482): the strong static control."""

    def weigh(self) -> tuple[float, ...]:
        """1/n for every expert."""
        return normalised(None, self.count)

    def merge(self, tensors: Tensors, amounts: Sequence[float]) -> Tensor:
        """θ = Σ_i θ_i / n."""
        return weighted(tensors.experts, amounts)
