"""Exponential moving averages of weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class WeightAverage:
    """Keeps θ̄ ← d θ̄ + (1 - d) θ of weights θ that are trained, from what they are at first.

    Args:
        weights: θ; they stay the objects they are.
        decay: d, from 0 (the weights themselves) to 1 (the weights as they are at first, for good).
    """

    def __init__(self, weights: Sequence[Tensor], decay: float) -> None:
        self.decay = decay
        self._weights = list(weights)
        self.averages = [weight.detach().clone() for weight in weights]
        self._swapped = False

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        for average, weight in zip(self.averages, self._weights, strict=True):
            average.lerp_(weight, 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Compute with the averages where the weights are, for as long as the (outermost) block runs."""
        if self._swapped:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def load(self, averages: Sequence[Tensor]) -> None:
        """Go on from other averages, those of a checkpoint."""
        for average, given in zip(self.averages, averages, strict=True):
            average.copy_(given)

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weight in zip(self.averages, self._weights, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
        self._swapped = not self._swapped
