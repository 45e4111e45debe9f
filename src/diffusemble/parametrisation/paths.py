"""Paths from a picture to noise, x_t = α_t x₀ + σ_t ε: time ↔ (α, σ) ↔ signal-to-noise ratio, in float64.

Two paths meet where their ratios σ / α are equal: there z_B = z_A n_B / n_A holds the same picture and the same noise,
n = √(α² + σ²), which is α_B / α_A wherever that has a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Real
from torch import Tensor

from diffusemble.parametrisation.kinds import Point, Prediction, coefficients, factors

HIDDEN = 12 * math.log(2)
"""Beyond ρ = ± this, at SNR 2^∓24, a prediction that is all noise (all picture) is not asked for the other part."""


class VariancePreserving:
    """α = √ᾱ, σ = √(1 - ᾱ) for a table of ᾱ, at whole and broken timesteps.

    Between two timesteps ln(σ / α) is linear in time, as in samplers that choose their own noise levels. Where the
    table ends without a picture (zero terminal SNR, arXiv 2305.08891), α / σ is linear between the last two.

    Args:
        alphas: ᾱ of timesteps 0, 1, ..., falling.

    Raises:
        ValueError: a value outside [0, 1), or two that do not fall.
    """

    def __init__(self, alphas: Float[Tensor, " t"]) -> None:
        bars = alphas.detach().cpu().double()
        if len(bars) < 2 or not (bars >= 0).all() or not (bars < 1).all() or not (bars.diff() < 0).all():
            raise ValueError(
                f"A noise schedule is a table of at least two ᾱ that fall from below 1 to 0 or more; got {len(bars)} "
                f"values from {float(bars[0]):.6g} to {float(bars[-1]):.6g}. Check the betas of the expert's scheduler."
            )
        self.ratios = (torch.log1p(-bars) - bars.log()) / 2

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VariancePreserving) and torch.equal(self.ratios, other.ratios)

    def __hash__(self) -> int:
        return hash((len(self.ratios), float(self.ratios[0]), float(self.ratios[-1])))

    def point(self, time: Real[Tensor, " b"]) -> Point:
        """Point of every ``time``; before the first timestep that of the first one, after the last that of the last."""
        exact = time.double().clamp(0, len(self.ratios) - 1)
        before = exact.floor().long().clamp(max=len(self.ratios) - 2)
        part = exact - before
        low, high = self.ratios[before], self.ratios[before + 1]
        # At its two ends the interval has the table's own values, whatever rounding makes of the sum.
        between = torch.where(part == 1, high, torch.where(part == 0, low, low + part * (high - low)))
        ratio = torch.where(high.isinf(), low - torch.log1p(-part), between)
        return Point(torch.sigmoid(-2 * ratio).sqrt(), torch.sigmoid(2 * ratio).sqrt())

    def time(self, ratio: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Time at which ρ = ln(σ / α) is ``ratio``; the nearest end where the table does not reach so far."""
        wanted = ratio.double().clamp(self.ratios[0], self.ratios[-1])
        after = torch.searchsorted(self.ratios, wanted).clamp(1, len(self.ratios) - 1)
        low, high = self.ratios[after - 1], self.ratios[after]
        part = torch.where(high.isinf(), -torch.expm1(low - wanted), (wanted - low) / (high - low))
        return after - 1 + part.clamp(0, 1)


@dataclass(frozen=True)
class Flow:
    """α = 1 - σ, σ = t / steps (rectified flow, arXiv 2209.03003).

    A schedule's shift s adds ln s to ρ = ln(σ / α) before the time is told, so it moves the steps and not the path.
    """

    steps: int

    def point(self, time: Real[Tensor, " b"]) -> Point:
        """Point of every ``time`` between 0 and ``steps``."""
        sigma = (time.double() / self.steps).clamp(0, 1)
        return Point(1 - sigma, sigma)

    def time(self, ratio: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Time at which ρ = ln(σ / α) is ``ratio``: there σ = e^ρ / (1 + e^ρ)."""
        return self.steps * torch.sigmoid(ratio.double())


Path = VariancePreserving | Flow
"""A path of latents; two that are equal need no translation."""


@dataclass(frozen=True)
class Terms:
    """How a denoiser speaks of latents: the path they lie on, and the kind of its predictions."""

    path: Path
    kind: Prediction


def predict_in(
    ours: Terms, theirs: Terms, predict: Callable[[Tensor, Any], Tensor], sample: Float[Tensor, "b ..."], time: Any
) -> Float[Tensor, "b ..."]:
    """What a denoiser of ``theirs`` predicts of a ``sample`` in ``ours``, in the terms of ``ours``.

    It is asked at the point of its own path with the same ratio of noise to picture, and what it says of noise and
    picture there is told in our terms. Where its path does not reach our ratio, or its kind says nothing there
    (``HIDDEN``), it is asked at its nearest point instead, and so finite whatever we ask.

    Args:
        ours: of sample, time and result.
        theirs: of ``predict``.
        predict: ``predict(z, t)`` for latents ``z [b ...]`` and times ``t``: ``time`` as it is, or numbers ``[b]``.
        sample: ``[b ...]``.
        time: of the sample, a number or a tensor of one or b.

    Returns:
        The prediction; where both terms are the same, that of ``predict(sample, time)`` bit for bit.
    """
    if ours == theirs:
        return predict(sample, time)
    exact = torch.promote_types(sample.dtype, torch.float32)
    times = torch.as_tensor(time).detach().cpu().double().reshape(-1).expand(len(sample))
    here = ours.path.point(times)
    readable = here.ratio.clamp(*_limits(theirs.kind))
    if ours.path == theirs.path and torch.equal(readable, here.ratio):
        there, asked, latents = here, time, sample
    else:
        asked = theirs.path.time(readable)
        there = theirs.path.point(asked)
        latents = (sample.to(exact) * _beside(there.size / here.size, sample, exact)).to(sample.dtype)
        asked = asked.to(sample.device, exact)
    prediction = predict(latents, asked)
    if ours.kind == theirs.kind != "v_prediction":
        return prediction
    of_sample, of_prediction = factors(
        there.alpha, there.sigma, theirs.kind, coefficients(here.alpha, here.sigma, ours.kind)
    )
    told = _beside(of_sample, sample, exact) * latents + _beside(of_prediction, sample, exact) * prediction
    return told.to(prediction.dtype)


def _limits(kind: Prediction) -> tuple[float, float]:
    return (
        -HIDDEN if kind == "sample" else -math.inf,
        HIDDEN if kind == "epsilon" else math.inf,
    )


def _beside(values: Tensor, sample: Tensor, dtype: torch.dtype) -> Tensor:
    """``values [b]`` on the sample's device, in shape to be multiplied with it."""
    return values.to(sample.device, dtype).view(-1, *[1] * (sample.ndim - 1))
