"""DARE: drop most of every difference at random, and rescale the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from diffusemble.config.schema import Schema, Seed
from diffusemble.merging.methods.base import Method, Tensors, normalised


class DareOptions(Schema):
    """Options of DARE.

    Attributes:
        drop: probability of every entry of a difference to be dropped.
        shares: one number per expert, which are divided by their sum; equal by default.
        scale: what the merged difference is multiplied with.
        seed: of the random choice, which depends on nothing else but the tensor's name and the expert's place.
    """

    drop: float = Field(default=0.5, ge=0, lt=1)
    shares: tuple[float, ...] | None = None
    scale: float = 1.0
    seed: Seed = 0


class Dare(Method):
    """DARE (Yu et al., ICML 2024, arXiv 2311.03099), with a weighted mean of what is left."""

    Options = DareOptions
    options: DareOptions
    needs_base = True
    weighs = "shares"

    def weigh(self) -> tuple[float, ...]:
        """One share per expert; they sum to one."""
        return normalised(self.options.shares, self.count, "DARE")

    def merge(self, tensors: Tensors, amounts: Sequence[float]) -> Tensor:
        """θ = C + λ Σ_i w_i δ̂_i, with δ̂_i what ``drop_and_rescale`` leaves of E_i − C."""
        total = tensors.origin.clone()
        for index, share in enumerate(amounts):
            if share != 0:
                change = tensors.experts[index] - tensors.origin
                left = drop_and_rescale(change, self.options.drop, chance(self.options.seed, index, tensors.key))
                total.add_(left, alpha=share * self.options.scale)
        return total


def drop_and_rescale(change: Float[Tensor, "*size"], drop: float, generator: torch.Generator) -> Float[Tensor, "*size"]:
    """δ̂ = m ⊙ δ / (1 − p) with m ~ Bernoulli(1 − p): on average δ itself (DARE, eq. 2 to 4)."""
    return change * (torch.rand(change.shape, generator=generator) >= drop) / (1 - drop)


def chance(seed: int, place: int, key: str) -> torch.Generator:
    """A generator of its own for every tensor of every expert, in whatever order they come."""
    digest = hashlib.sha256(f"{seed}/{place}/{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
