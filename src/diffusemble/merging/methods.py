"""Formulas that make one set of weights of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


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
    parts = [1.0] * len(models) if shares is None else list(shares)
    if len(parts) != len(models) or sum(parts) == 0:
        raise ValueError(
            f"A weight average takes one share per model, not summing to zero; got {parts} for {len(models)} models. "
            f"Give {len(models)} positive shares."
        )
    for number, model in enumerate(models[1:], start=2):
        _check(model, models[0], number)
    total = sum(parts)
    merged = {}
    for key, first in models[0].items():
        if not first.is_floating_point():
            merged[key] = first.clone()
            continue
        scaled = [model[key].double() * part for model, part in zip(models, parts, strict=True)]
        merged[key] = (torch.stack(scaled).sum(dim=0) / total).to(first.dtype)
    return merged


def _check(model: Weights, first: Weights, number: int) -> None:
    for key in first.keys() ^ model.keys():
        which = f"model {number}" if key in first else "model 1"
        raise ValueError(f"Merged models have the same tensors, but {which} lacks {key!r}. Use one architecture.")
    for key, tensor in model.items():
        if tensor.shape != first[key].shape:
            raise ValueError(
                f"Merged models have the same shapes, but {key!r} is {tuple(tensor.shape)} in model {number} and "
                f"{tuple(first[key].shape)} in model 1. Use one architecture."
            )
