"""What LyCORIS files mean whose change follows from the weight itself: GLoRA, (IA)³, OFT and BOFT. Pure functions.

A weight is ``[o i ...]``, o outputs and i inputs, with a kernel's height and width at the end; r is a rank. Every
function gives ΔW, in the weight's shape.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def glora(weight: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
    """ΔW = W · A + B with two low-rank matrices (GLoRA, Chavan et al. 2023, arXiv 2306.07967, eq. 10).

    Args:
        weight: W.
        factors: A = ``a1`` · ``a2`` of ``[i r]`` and ``[r i]``, and B = ``b1`` · ``b2`` of ``[o r]`` and
            ``[r i ...]``. Early files have the two of each pair the other way round, which their shapes tell.
    """
    a, b = ([factors[f"{name}{number}"] for number in "12"] for name in "ab")
    if a[0].shape[0] < a[0].shape[1]:
        a, b = a[::-1], b[::-1]
    mixed = torch.einsum("oi...,ir,rj->oj...", weight, a[0].flatten(1), a[1].flatten(1))
    return mixed + (b[0].flatten(1) @ b[1].flatten(1)).reshape(weight.shape)


def ia3(weight: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
    """ΔW = s ∘ W, a scale for every output or input ((IA)³, Liu et al. 2022, arXiv 2205.05638).

    Args:
        weight: W.
        factors: ``scale``, s, with as many numbers as outputs, or as inputs where ``on_input`` is not 0.
    """
    axis = int(bool(factors["on_input"]))
    sides = [1] * weight.ndim
    sides[axis] = weight.shape[axis]
    return factors["scale"].reshape(sides) * weight


def oft(weight: Tensor, factors: Mapping[str, Tensor], strictness: float | None) -> Tensor:
    """W' = s ∘ (Rᵀ · W), where the outputs are turned (OFT, Qiu et al. 2023, arXiv 2306.07280; BOFT, Liu et al. 2023,
    arXiv 2311.06243).

    R is Cayley's (I + S)(I − S)⁻¹ of a skew-symmetric S = B − Bᵀ. OFT has one block-diagonal R. BOFT has m of them,
    and Rᵀ is their product, each between two orders of the outputs: the first joins neighbours, and every further one
    outputs that are twice as far apart.

    Args:
        weight: W.
        factors: ``oft_blocks``, B: ``[k n n]`` for OFT, ``[m k n n]`` for BOFT, k·n = o, or ``oft_blocks.0``,
            ``oft_blocks.1``, ... for pieces of the outputs, one after the other; with ``rescale``, s, one number for
            every output.
        strictness: where it is larger than 0, S of a piece with o outputs is shortened to the norm strictness · o if
            it is longer.
    """
    turns = [_rotations(factors[name], strictness or 0.0) for name in sorted(factors) if name.startswith("oft_blocks")]
    whole = weight.flatten(1)
    pieces = whole.split([turn.shape[-3] * turn.shape[-1] for turn in turns])
    whole = torch.cat([_turned(turn, rows) for turn, rows in zip(turns, pieces, strict=True)])
    if "rescale" in factors:
        whole = factors["rescale"].reshape(-1, 1) * whole
    return whole.reshape(weight.shape) - weight


def _rotations(blocks: Tensor, strictness: float) -> Tensor:
    """What the outputs are multiplied by, block by block, in the shape of B."""
    skew = blocks - blocks.mT
    if strictness > 0:
        limit = strictness * skew.shape[-3] * skew.shape[-1]
        skew = skew * min(1.0, limit / (float(torch.linalg.vector_norm(skew)) + 1e-8))
    one = torch.eye(skew.shape[-1])
    turns = (one + skew) @ torch.linalg.inv(one - skew)
    return turns.mT if turns.ndim == 3 else turns


def _turned(turns: Tensor, rows: Tensor) -> Tensor:
    """``rows [k·n j]``, n by n multiplied by blocks ``[k n n]``, or by the levels ``[m k n n]`` of a butterfly."""
    if turns.ndim == 3:
        return torch.bmm(turns, rows.unflatten(0, turns.shape[:2])).flatten(0, 1)
    for level, turn in enumerate(turns):
        apart = 2**level * turn.shape[-1] // 2
        joined = rows.unflatten(0, (-1, 2, apart)).transpose(1, 2)
        rows = _turned(turn, joined.flatten(0, 2)).reshape(joined.shape).transpose(1, 2).flatten(0, 2)
    return rows
