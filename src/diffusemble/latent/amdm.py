"""AMDM: several models' latents become one point of the sphere, then each model draws it to where it would go.

Aggregating Multi-Diffusion-Models (Yue et al., arXiv 2410.01262), section on spherical aggregation and deviation
optimisation, for any number of models; and the published code's own variants of each formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import acos, hypot, sqrt
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffusemble.latent.base import Level

Mix = Literal["slerp", "renormalised", "unit", "linear"]
"""How latents are mixed, see ``mix``."""

ROUNDS = 64
"""Of the iteration in ``slerp``: more than it needs at any angle below 90°; it stops when nothing moves."""


# -- Weights -----------------------------------------------------------------------------------------------------------


def unit_weights(weights: Sequence[float]) -> tuple[float, ...]:
    """w / ‖w‖₂: weights that keep the norm of orthogonal latents of one norm, for any number of models.

    Raises:
        ValueError: no weights, a negative one, or nothing but zeros.
    """
    if not weights or min(weights) < 0 or max(weights) == 0:
        raise ValueError(
            f"Spherical aggregation takes one weight per model, none negative and not all zero; got {list(weights)}. "
            f"Give positive numbers; only their ratio counts."
        )
    norm = hypot(*weights)
    return tuple(weight / norm for weight in weights)


def reference_weights(*omegas: float) -> tuple[float, ...]:
    """Weights of the published scripts, base first.

    Two models: ω, √(1 - ω²). Three: ω₁ω₂, √(1 - ω₁²) ω₂, √(1 - ω₁²) √(1 - ω₂²), whose squares sum to
    1 - ω₁² (1 - ω₂²) and not to one: latents shrink, by a tenth at ω₁ = ω₂ = ½.

    Raises:
        ValueError: not one or two numbers from 0 to 1.
    """
    if len(omegas) not in (1, 2) or not all(0 <= omega <= 1 for omega in omegas):
        raise ValueError(
            f"The published weights are of two models (one ω) or three (ω₁ and ω₂), each from 0 to 1; got "
            f"{list(omegas)}. For other numbers of models use unit weights."
        )
    first, rest = omegas[0], sqrt(1 - omegas[0] ** 2)
    if len(omegas) == 1:
        return (first, rest)
    second = omegas[1]
    return (first * second, rest * second, rest * sqrt(1 - second**2))


# -- Aggregation -------------------------------------------------------------------------------------------------------


def mix(latents: Sequence[Tensor], weights: Sequence[float], how: Mix = "slerp") -> Float[Tensor, "b ..."]:
    """z of n models' latents ``[b ...]``, sample by sample, in float32.

    With w the unit weights (‖w‖₂ = 1):

    - ``"linear"``: Σ w_m x_m / Σ w_m. The norm of independent latents shrinks, by √n at equal weights.
    - ``"unit"``: Σ w_m x_m, the published formula. Keeps the norm of orthogonal latents and inflates that of similar
      ones, up to Σ w_m times when they are equal.
    - ``"renormalised"``: the direction of Σ w_m x_m with the norm Σ w_m² ‖x_m‖.
    - ``"slerp"``: ``slerp`` below, with the norm Σ w_m² ‖x_m‖.

    The four differ once models have exchanged latents, since those are no longer orthogonal; the last two and the first
    give back n equal latents. A single one comes back as it is.
    """
    if len(latents) == 1:
        return latents[0]
    unit = unit_weights(weights)
    stacked = torch.stack([x.float() for x in latents]).flatten(2)
    w = stacked.new_tensor(unit).view(-1, 1, 1)
    if how == "linear":
        mixed = (w * stacked).sum(dim=0) / sum(unit)
    elif how == "unit":
        mixed = (w * stacked).sum(dim=0)
    else:
        norms = stacked.norm(dim=2, keepdim=True)
        directions = stacked / norms.clamp_min(torch.finfo(norms.dtype).tiny)
        towards = slerp(directions, unit) if how == "slerp" else _direction((w * stacked).sum(dim=0))
        mixed = towards * (w**2 * norms).sum(dim=0)
    return mixed.view_as(latents[0]).to(latents[0].dtype)


def slerp(directions: Float[Tensor, "n b d"], unit: Sequence[float]) -> Float[Tensor, "b d"]:
    """Weighted mean p of n points of the unit sphere: spherical interpolation for any n.

    p is where Σ_m s_m log_p(u_m) = 0, found by p ← exp_p(Σ_m s_m log_p(u_m)) from the normalised sum, with the shares
    s_m ∝ w_m √(1 - w_m²) / arccos(w_m). With those, orthogonal points have exactly p = Σ w_m u_m (AMDM's formula), and
    two points at any angle Ω have p = (sin((1-τ)Ω) u_1 + sin(τΩ) u_2) / sin Ω (Shoemake 1985) with τ = 2/π arcsin(w_2).

    Args:
        directions: unit vectors u.
        unit: weights w of unit norm.
    """
    shares = directions.new_tensor([w * sqrt(1 - w**2) / acos(w) if w < 1 else 1.0 for w in unit]).view(-1, 1, 1)
    shares = shares / shares.sum()
    w = directions.new_tensor(unit).view(-1, 1, 1)
    point = _direction((w * directions).sum(dim=0))
    for _ in range(ROUNDS):
        cosines = (directions * point).sum(dim=2, keepdim=True).clamp(-1, 1)
        apart = directions - cosines * point
        sines = apart.norm(dim=2, keepdim=True)
        angles = torch.atan2(sines, cosines)
        # At angle 0 the logarithm is 0 as well: whatever stands for its direction does not matter.
        move = (shares * angles / sines.clamp_min(1e-12) * apart).sum(dim=0)
        length = move.norm(dim=1, keepdim=True)
        point = _direction(point * length.cos() + move * torch.sinc(length / torch.pi))
        if length.max() < 1e-6:
            break
    return point


def _direction(vectors: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """x / ‖x‖; zero stays zero."""
    return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)


# -- Means: where a model alone would go -------------------------------------------------------------------------------


def ddim_mean(clean: Float[Tensor, "b ..."], noise: Tensor, after: Level) -> Float[Tensor, "b ..."]:
    """α_s x̂₀ + σ_s ε̂: the deterministic step to level s (arXiv 2010.02502, equation 12 with σ = 0)."""
    return after.alpha * clean + after.sigma * noise


def ddpm_mean(sample: Float[Tensor, "b ..."], clean: Tensor, before: Level, after: Level) -> Float[Tensor, "b ..."]:
    """Mean of q(x_s | x_t, x̂₀) between any two levels t and s (arXiv 2006.11239, equation 7, strided).

    With r = α_t / α_s and v = σ_t² - r² σ_s²: μ = (r σ_s² x_t + v α_s x̂₀) / σ_t².
    """
    ratio = before.alpha / after.alpha
    variance = before.sigma**2 - (ratio * after.sigma) ** 2
    return (ratio * after.sigma**2 * sample + variance * after.alpha * clean) / before.sigma**2


def reference_mean(sample: Float[Tensor, "b ..."], noise: Tensor, level: Level, beta: float) -> Float[Tensor, "b ..."]:
    """μ = (x - β_s ε / √(1 - ᾱ_s)) / √(1 - β_s): the published code's mean.

    It is the mean of *one training step*, not of the sampler's, and it is taken one step too late: the code pairs
    latents ``sample`` of this step with the noise and level of the step before. In effect μ is close to ``sample``.

    Args:
        sample: latents that the current step started from.
        noise: guided noise predicted one step before.
        level: of the latents one step before, s.
        beta: variance β_s of the training step s.
    """
    return (sample - beta / level.sigma * noise) / sqrt(1 - beta)


# -- Deviation optimisation --------------------------------------------------------------------------------------------


def draw_to(mixed: Float[Tensor, "b ..."], mean: Tensor, length: float, shell: bool = False) -> Float[Tensor, "b ..."]:
    """x = z - min(l, ‖z - μ‖) (z - μ) / ‖z - μ‖ with l = length · √(values of one sample), in float32.

    One normalised gradient step of log N(z; μ, ·) per sample, which stops at the mean instead of passing it, and stays
    where it is if it is there already.

    Args:
        mixed: aggregated latents z.
        mean: μ of one model.
        length: of the step, as a share of the norm that standard normal latents have.
        shell: give x a norm between those of z and μ, as far along as it went. A straight step between two points of
            one sphere passes inside it, so latents would lose noise.

    Raises:
        ValueError: a negative length.
    """
    if length < 0:
        raise ValueError(
            f"A step of deviation optimisation goes towards a model's mean, so its length is 0 or more; got "
            f"{length:g}. The published steps of 35 to 55 at 4 x 64 x 64 latents are lengths of 0.27 to 0.43."
        )
    start, goal = mixed.float().flatten(1), mean.float().flatten(1)
    least = torch.finfo(start.dtype).tiny
    distance = (start - goal).norm(dim=1, keepdim=True)
    share = (length * sqrt(start.shape[1]) / distance.clamp_min(least)).clamp(max=1.0)
    drawn = start - share * (start - goal)
    if shell:
        norm = torch.lerp(start.norm(dim=1, keepdim=True), goal.norm(dim=1, keepdim=True), share)
        drawn = drawn * (norm / drawn.norm(dim=1, keepdim=True).clamp_min(least))
    return drawn.view_as(mixed).to(mixed.dtype)


def reference_draw_to(mixed: Float[Tensor, "b ..."], mean: Tensor, length: float) -> Float[Tensor, "b ..."]:
    """x = z - l (z - μ) / ‖z - μ‖ as published: one norm over the whole batch, past the mean where l is larger, NaN
    where z = μ. ``length`` as in ``draw_to``, so l is the script's p at p = length · √(values of one sample)."""
    away = mixed - mean
    return mixed - length * sqrt(mixed[0].numel()) * away / away.norm()
