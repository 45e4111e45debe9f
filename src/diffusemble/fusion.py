"""Several noise predictions of one image become one: formulas on tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

Kernel = Literal["reference", "symmetric"]
"""How a saliency is smoothed, see ``smooth``."""


def mean(predictions: Sequence[Tensor], weights: Sequence[float] | None = None) -> Float[Tensor, "b c h w"]:
    """ε = Σ_i w_i ε_i / Σ_i w_i, the noise average of models that share one latent space.

    An ensemble whose aggregator is ``mean`` at the last point alone predicts the same.

    Args:
        predictions: n predictions ``[b c h w]``.
        weights: one number per prediction; equal by default.

    Raises:
        ValueError: no predictions, different shapes, or weights that do not fit or sum to zero.
    """
    shapes = [tuple(prediction.shape) for prediction in predictions]
    if len(set(shapes)) != 1:
        raise ValueError(
            f"A noise average needs one or more predictions of one shape [b c h w]; got {shapes}. Use models that "
            f"share one latent space, at one image size."
        )
    parts = zip(predictions, shares(weights, len(shapes)), strict=True)
    return torch.stack([prediction * share for prediction, share in parts]).sum(dim=0)


def shares(weights: Sequence[float] | None, n: int) -> tuple[float, ...]:
    """w_i / Σ_j w_j for n weights; 1 / n if none are given.

    Raises:
        ValueError: not n weights, or their sum is zero.
    """
    given = [1.0] * n if weights is None else list(weights)
    if len(given) != n or sum(given) == 0:
        raise ValueError(
            f"A noise average takes one weight per prediction, not summing to zero; got {given} for {n} "
            f"predictions. Give {n} positive weights."
        )
    return tuple(weight / sum(given) for weight in given)


# -- MagicFusion: saliency-aware noise blending (arXiv 2303.13126, section 3.2), for any number of models --------------


def saliency(
    conditional: Float[Tensor, "b c h w"],
    unconditional: Float[Tensor, "b c h w"],
    guidance: float,
    kernel: Kernel = "reference",
) -> Float[Tensor, "b h w"]:
    """s = mean over channels of smooth(|w (ε_c - ε_u)|): where, and how much, guidance changes a prediction.

    Args:
        conditional: noise ε_c predicted with the prompt.
        unconditional: noise ε_u predicted without it, or with the negative prompt.
        guidance: guidance scale w.
        kernel: of the smoothing.
    """
    exact = torch.promote_types(conditional.dtype, torch.float32)
    response = guidance * (conditional.to(exact) - unconditional.to(exact))
    return smooth(response.abs().mean(dim=1), kernel)


def smooth(values: Float[Tensor, "b h w"], kernel: Kernel = "reference") -> Float[Tensor, "b h w"]:
    """Moving 4 x 4 average, at the size it came in.

    A window of four has no middle. ``"reference"`` is the published one: position i averages i - 2 to i + 1, zeros
    beyond the border included, so that the result lies half a pixel further down and right, and fades at the border.
    ``"symmetric"`` is the mean of the four windows around each position (1, 2, 2, 2, 1 eighths along either axis) and
    averages only what lies inside: it commutes with mirroring and keeps a constant map.
    """
    if kernel == "reference":
        return _windows(values)[:, :-1, :-1]
    inside = _around(torch.ones_like(values))
    return _around(values) / inside


def most_salient(saliencies: Float[Tensor, "b n h w"], temperatures: Sequence[float]) -> Float[Tensor, "b n h w"]:
    """One-hot maps of argmax_i p_i with p_i = softmax over positions of k_i s_i; the first of equals.

    The softmax makes models comparable that respond to guidance with different strength: each distributes the same
    total over the picture, the more sharply the larger its k_i.

    Args:
        saliencies: s_i of every model.
        temperatures: k_i of every model.
    """
    k = saliencies.new_tensor(temperatures).view(-1, 1)
    # The logarithm keeps the order and does not underflow on large pictures.
    chances = (k * saliencies.flatten(2)).log_softmax(dim=2)
    chosen = chances.argmax(dim=1, keepdim=True)
    return torch.zeros_like(chances).scatter_(1, chosen, 1.0).view_as(saliencies)


def _windows(values: Tensor) -> Tensor:
    """Averages ``[b h+1 w+1]`` of 4 x 4 windows; number i along an axis covers i - 2 to i + 1, zeros outside."""
    return avg_pool2d(values, kernel_size=4, stride=1, padding=2)


def _around(values: Tensor) -> Tensor:
    return avg_pool2d(_windows(values), kernel_size=2, stride=1)
