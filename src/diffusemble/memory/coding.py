"""Weights kept in eight bits: codes and one scale per row, turned back before they are used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

CODES: Mapping[str, torch.dtype] = {"float8": torch.float8_e4m3fn, "int8": torch.int8}
"""Storage types by name; every code takes one byte."""


@dataclass(frozen=True)
class Coded:
    """A weight ``[r, ...]`` as ``codes`` of the same shape and float32 ``scales [r]``; it is about their product."""

    codes: Tensor
    scales: Tensor


def is_coded(weight: Tensor, storage: str) -> bool:
    """Whether ``weight`` is kept in eight bits: matrices and kernels are, biases and norms stay as they are."""
    return storage in CODES and weight.ndim > 1 and weight.is_floating_point()


def encode(weight: Tensor, storage: str) -> Coded:
    """Round ``weight [r, ...]`` to eight bits; the largest entry of every row becomes the largest code.

    The error of an entry is at most 1/254 of its row's largest one in int8, and 1/16 of itself in float8 (three bits
    of mantissa; entries below 1/28,672 of the row's largest lose more).
    """
    dtype = CODES[storage]
    top = float(torch.iinfo(dtype).max if dtype == torch.int8 else torch.finfo(dtype).max)
    rows = weight.detach().float().flatten(1)
    scales = (rows.abs().amax(dim=1) / top).clamp_min(torch.finfo(torch.float32).tiny)
    codes = (rows / scales[:, None]).clamp(-top, top)
    return Coded((codes.round() if dtype == torch.int8 else codes).to(dtype).reshape(weight.shape), scales)


def decode(coded: Coded, out: Tensor) -> None:
    """Write the weight to ``out``, in its number type."""
    out.copy_(coded.codes)  # exact in every type of a weight
    out.mul_(coded.scales.reshape(-1, *(1,) * (out.ndim - 1)))  # float32: small scales are subnormal in float16
