"""What LoRA and LyCORIS files mean: from small factors to the change of a weight. Pure functions.

Every factor is a tensor; convolutions have their kernel's height and width as last axes. r is the rank, and every
difference is multiplied by alpha / r.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from diffusemble.experts.additions.transforms import glora, ia3, oft

Factors = Mapping[str, Tensor]
"""By the names of ``formats.adapters.FACTORS``."""


def difference(weight: Tensor, factors: Factors, alpha: float | None = None) -> Tensor:
    """What a file adds to one weight, in float32.

    Args:
        weight: of the module, ``[o i ...]``.
        factors: of the module.
        alpha: strength; the rank (no scaling) by default. Of OFT and BOFT the limit of their turns, none by default.

    Raises:
        ValueError: the factors belong to no formula, or one is missing.
    """
    wide = {name: tensor.float() for name, tensor in factors.items()}
    try:
        if "diff" in wide:
            return wide["diff"]
        if any(name.startswith("oft_blocks") for name in wide):
            return oft(weight.float(), wide, alpha)
        if "scale" in wide or "on_input" in wide:
            return ia3(weight.float(), wide)
        if "a1" in wide:
            return glora(weight.float(), wide) * _scale(alpha, min(wide["a1"].shape[:2]))
        if "hada_w1_a" in wide:
            return loha(wide) * _scale(alpha, wide["hada_w1_b"].shape[0])
        if "lokr_w1" in wide or "lokr_w1_a" in wide:
            rank = next((wide[name].shape[0] for name in ("lokr_w1_b", "lokr_w2_b") if name in wide), None)
            return lokr(wide) * (1.0 if rank is None else _scale(alpha, rank))
        return lora(wide["up"], wide["down"], wide.get("mid")) * _scale(alpha, wide["down"].shape[0])
    except KeyError as error:
        raise ValueError(f"the factor {error} is missing beside {', '.join(factors)}") from error


def lora(up: Tensor, down: Tensor, mid: Tensor | None = None) -> Tensor:
    """ΔW = up · down (Hu et al. 2021, arXiv 2106.09685).

    Args:
        up: ``[o r]`` or ``[o r 1 1]``.
        down: ``[r i]`` or ``[r i h w]``; with ``mid``, ``[r i 1 1]``.
        mid: ``[r r h w]``, the kernel between two 1x1 convolutions (LoCon with Tucker decomposition).

    Returns:
        ``[o i]`` or ``[o i h w]``.
    """
    if mid is not None:
        return torch.einsum("or,rshw,si->oihw", up.flatten(1), mid, down.flatten(1))
    return (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def loha(factors: Factors) -> Tensor:
    """ΔW = (w1a · w1b) ∘ (w2a · w2b), a Hadamard product (Hyeon-Woo et al. 2021, arXiv 2108.06098; LyCORIS).

    Args:
        factors: ``hada_w1_a [o r]``, ``hada_w1_b [r i]`` and the same for 2; with ``hada_t1``, ``hada_t2``
            ``[r r h w]`` for convolutions, where ``a`` is ``[r o]``.

    Returns:
        ``[o i]``, flat ``[o i·h·w]``, or ``[o i h w]``.
    """
    halves = []
    for number in "12":
        a, b, kernel = factors[f"hada_w{number}_a"], factors[f"hada_w{number}_b"], factors.get(f"hada_t{number}")
        halves.append(a @ b if kernel is None else torch.einsum("rshw,si,ro->oihw", kernel, b, a))
    return halves[0] * halves[1]


def lokr(factors: Factors) -> Tensor:
    """ΔW = w1 ⊗ w2, a Kronecker product (Edalati et al. 2022, arXiv 2212.10650; LyCORIS).

    Args:
        factors: ``lokr_w1 [p q]`` or its factors ``lokr_w1_a [p r]``, ``lokr_w1_b [r q]``; ``lokr_w2 [o i]`` or
            ``[o i h w]``, or its factors, for convolutions with ``lokr_t2 [r r h w]``, ``lokr_w2_a [r o]`` and
            ``lokr_w2_b [r i]``.

    Returns:
        ``[p·o q·i]`` or ``[p·o q·i h w]``.
    """
    first = factors["lokr_w1"] if "lokr_w1" in factors else factors["lokr_w1_a"] @ factors["lokr_w1_b"]
    if "lokr_w2" in factors:
        second = factors["lokr_w2"]
    elif "lokr_t2" in factors:
        second = torch.einsum("rshw,si,ro->oihw", factors["lokr_t2"], factors["lokr_w2_b"], factors["lokr_w2_a"])
    else:
        a, b = factors["lokr_w2_a"], factors["lokr_w2_b"]
        second = (a @ b.flatten(1)).reshape(a.shape[0], *b.shape[1:])
    return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second.contiguous())


def changed(weight: Tensor, delta: Tensor, amount: float, magnitude: Tensor | None = None) -> Tensor:
    """A weight after ``amount`` of a file was added, in float32.

    Without magnitude W + amount · ΔW. With it (DoRA, Liu et al. 2024, arXiv 2402.09353) the file means
    W' = m · (W + ΔW) / ‖W + ΔW‖, and ``amount`` goes straight from W to W'.

    Args:
        weight: ``[o i ...]``.
        delta: as many numbers.
        amount: 0 for none, 1 for the file as it is.
        magnitude: m, ``[o]`` or ``[o 1 ...]`` for norms over inputs, ``[1 i ...]`` for norms over outputs.
    """
    wide = weight.float()
    step = delta.reshape(wide.shape)
    if magnitude is None:
        return wide + amount * step
    size = magnitude.float()
    size = size.reshape(*size.shape, *[1] * (wide.ndim - size.ndim))
    axes = [axis for axis, length in enumerate(size.shape) if length == 1]
    whole = wide + step
    aimed = size * whole / torch.linalg.vector_norm(whole, dim=axes, keepdim=True)
    return wide + amount * (aimed - wide)


def _scale(alpha: float | None, rank: int) -> float:
    return 1.0 if alpha is None else alpha / rank
