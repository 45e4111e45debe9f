"""What a denoiser predicts: noise, clean latents, velocity and flow are four views of one pair (x₀, ε).

At a point x = α x₀ + σ ε of a path, with n = √(α² + σ²), every prediction is a sum p = a x₀ + b ε:

    kind              a       b      determinant D = α b - σ a
    epsilon           0       1      α
    sample            1       0      -σ
    v_prediction     -σ/n    α/n     n          (arXiv 2202.00512, appendix D; n is 1 where the variance is preserved)
    flow_prediction  -1       1      α + σ      (arXiv 2210.02747, in diffusers' direction of time)

So x and p together say everything, x₀ = (b x - σ p) / D and ε = (α p - a x) / D, wherever D is not 0: predicted noise
says nothing of a picture that is not there (α = 0), predicted latents nothing of noise that is not there (σ = 0). The
coefficients depend on σ / α alone, so a prediction says the same on every path at one signal-to-noise ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
"""Kinds of prediction, by diffusers' names."""

N = TypeVar("N", float, Tensor)

_NEEDS = {
    "epsilon": "Latents of pure noise (alpha 0) say nothing of the picture to a denoiser that predicts noise. Use "
    "models that predict velocity or the picture, or a schedule whose last level keeps some of it.",
    "sample": "Clean latents (sigma 0) hold no noise that could be told from a predicted sample. Ask before it.",
}


@dataclass(frozen=True)
class Point:
    """A point x = α x₀ + σ ε of a path for every sample: ``alpha [b]`` and ``sigma [b]``."""

    alpha: Tensor
    sigma: Tensor

    @property
    def size(self) -> Tensor:
        """n = √(α² + σ²): deviation of latents whose pictures have deviation 1; 1 where the variance is preserved."""
        return torch.hypot(self.alpha, self.sigma)

    @property
    def ratio(self) -> Tensor:
        """ρ = ln(σ / α), from -∞ for clean latents to ∞ for pure noise; minus half of the log-SNR."""
        return self.sigma.log() - self.alpha.log()


def coefficients(alpha: N, sigma: N, kind: Prediction) -> tuple[N, N]:
    """(a, b) of the prediction p = a x₀ + b ε of ``kind`` at x = α x₀ + σ ε."""
    nothing, one = alpha * 0, alpha * 0 + 1
    if kind == "epsilon":
        return nothing, one
    if kind == "sample":
        return one, nothing
    if kind == "flow_prediction":
        return -one, one
    size = (alpha**2 + sigma**2) ** 0.5
    return -sigma / size, alpha / size


def factors(alpha: N, sigma: N, kind: Prediction, target: tuple[N, N]) -> tuple[N, N]:
    """(k_x, k_p) so that k_x x + k_p p = a' x₀ + b' ε, for a prediction p of ``kind`` at x = α x₀ + σ ε.

    k_x = (a' b - b' a) / D and k_p = (α b' - σ a') / D.

    Args:
        alpha, sigma: of the point at which p was predicted.
        kind: of p.
        target: (a', b'), such as ``coefficients`` gives.

    Raises:
        ValueError: D is 0: p does not say what is asked for; the message says which point is at fault.
    """
    a, b = coefficients(alpha, sigma, kind)
    determinant = alpha * b - sigma * a
    if bool(torch.as_tensor(determinant == 0).any()):
        raise ValueError(_NEEDS[kind])
    wanted_a, wanted_b = target
    return (wanted_a * b - wanted_b * a) / determinant, (alpha * wanted_b - sigma * wanted_a) / determinant


def convert(prediction: Tensor, sample: Tensor, alpha: N, sigma: N, kind: Prediction, into: Prediction) -> Tensor:
    """The same prediction of ``sample`` = α x₀ + σ ε in other terms; in its own it stays as it is, bit for bit.

    Args:
        prediction: ``[b ...]``, of ``kind``.
        sample: ``[b ...]``.
        alpha, sigma: numbers, or tensors that broadcast against the sample.
        kind: what the prediction is.
        into: what it shall be.

    Raises:
        ValueError: see ``factors``; never where ``kind`` is ``into``.
    """
    if kind == into:
        return prediction
    of_sample, of_prediction = factors(alpha, sigma, kind, coefficients(alpha, sigma, into))
    return of_sample * sample + of_prediction * prediction
