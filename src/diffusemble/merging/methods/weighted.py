"""Weighted merging: a weighted mean of n models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from diffusemble.config.schema import Schema
from diffusemble.merging.methods.base import Method, Tensors, normalised

Weights = Mapping[str, Tensor]


class WeightedOptions(Schema):
    """Options of weighted merging.

    Attributes:
        shares: one number per expert, which are divided by their sum; equal by default.
    """

    shares: tuple[float, ...] | None = None


class Weighted(Method):
    """Weighted mean ("weighted merging", AFA table 1)."""

    Options = WeightedOptions
    options: WeightedOptions
    weighs = "shares"

    def weigh(self) -> tuple[float, ...]:
        """One share per expert; they sum to one."""
        return normalised(self.options.shares, self.count)

    def merge(self, tensors: Tensors, amounts: Sequence[float]) -> Tensor:
        """See ``weighted``."""
        return weighted(tensors.experts, amounts)


def weighted(models: Sequence[Tensor], shares: Sequence[float]) -> Float[Tensor, "*size"]:
    """θ = Σ_i w_i θ_i, for shares w that sum to one.

    A model without a share is not read, so that shares 1, 0 give the first one bit for bit.
    """
    total = None
    for index, share in enumerate(shares):
        if share != 0:
            part = models[index]
            total = part * share if total is None else total.add_(part, alpha=share)
    if total is None:
        raise ValueError(
            f"A weight average needs a share that is not zero; got {list(shares)}. Give one model a share."
        )
    return total


def weighted_average(models: Sequence[Weights], shares: Sequence[float] | None = None) -> dict[str, Tensor]:
    """θ = Σ_i w_i θ_i / Σ_i w_i, key by key ("weighted merging", AFA table 1; model soups, arXiv 2203.05482).

    Sums are in float64, so that copies of one model give exactly that model.

    Args:
        models: n sets of weights with the same keys and shapes.
        shares: one number per model; equal by default.

    Returns:
        Weights in the number types of the first model; tensors that hold no fractions are the first model's own.

    Raises:
        ValueError: no models, different keys or shapes, or shares that do not fit or sum to zero.
    """
    if not models:
        raise ValueError("A weight average needs at least one model; got none. Give one or more sets of weights.")
    parts = normalised(shares, len(models))
    for number, model in enumerate(models[1:], start=2):
        _check(model, models[0], number)
    return {
        key: weighted([model[key].double() for model in models], parts).to(first.dtype)
        if first.is_floating_point()
        else first.clone()
        for key, first in models[0].items()
    }


def _check(model: Weights, first: Weights, number: int) -> None:
    for key in sorted(first.keys() ^ model.keys()):
        which = f"model {number}" if key in first else "model 1"
        raise ValueError(f"Merged models have the same tensors, but {which} lacks {key!r}. Use one architecture.")
    for key, tensor in model.items():
        if tensor.shape != first[key].shape:
            raise ValueError(
                f"Merged models have the same shapes, but {key!r} is {tuple(tensor.shape)} in model {number} and "
                f"{tuple(first[key].shape)} in model 1. Use one architecture."
            )
