"""The mathematics of latent consistency distillation (Luo et al. 2023, arXiv 2310.04378; Song et al. 2023).

A consistency function f(z_t, t) maps every point of one path of the probability-flow ODE to the path's clean end. It is
learned from neighbours on a path: f(z_s, s) should be f(z_e, e), where the teacher's solver leads from z_s to z_e.
Here noise levels are ᾱ of the forward process, and time t is the schedule's, as diffusers' ``LCMScheduler`` has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

SIGMA_DATA, TIME_SCALE = 0.5, 10.0
"""σ_data and the scale of t in the boundary condition, those of ``LCMScheduler``."""


@dataclass(frozen=True)
class Boundary:
    """Coefficients ``[b]`` of z and of the predicted clean latents in f."""

    skip: Tensor
    out: Tensor


@dataclass(frozen=True)
class Jump:
    """Where the teacher's solver starts and ends: timesteps ``[b]``."""

    start: Tensor
    end: Tensor


def boundary(timesteps: Int[Tensor, " b"]) -> Boundary:
    """c_skip = σ² / ((τ t)² + σ²) and c_out = τ t / √((τ t)² + σ²): at t = 0, f(z, 0) = z exactly (LCM, appendix)."""
    scaled = timesteps.float() * TIME_SCALE
    square = scaled.square() + SIGMA_DATA**2
    return Boundary(SIGMA_DATA**2 / square, scaled / square.sqrt())


def jump_on_grid(timesteps: Int[Tensor, " b"], count: int, grid: int) -> Jump:
    """The grid point above every timestep, and the one before it, k = T / grid steps earlier.

    Args:
        timesteps: t from 0 to T - 1.
        count: T, timesteps of the forward process.
        grid: steps of the solver. Its points are k - 1, 2 k - 1, ..., those that ``LCMScheduler`` draws from with
            ``original_inference_steps=grid``; before the first comes 0.

    Raises:
        ValueError: more grid points than timesteps.
    """
    skip = count // grid
    if skip == 0:
        raise ValueError(f"The solver's grid has at most one point per timestep ({count}); got {grid}. Lower grid.")
    start = (torch.div(timesteps, skip, rounding_mode="floor").clamp(max=grid - 1) + 1) * skip - 1
    return Jump(start, (start - skip).clamp(min=0))


def clean_and_noise(
    prediction: Float[Tensor, "b c h w"], noisy: Float[Tensor, "b c h w"], alphas: Float[Tensor, " b"], kind: str
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """x̂ and ε̂ that a prediction (``"epsilon"`` or ``"v_prediction"``) says about z_t = √ᾱ x + √(1 - ᾱ) ε."""
    kept, added = _roots(alphas)
    if kind == "v_prediction":
        return kept * noisy - added * prediction, added * noisy + kept * prediction
    return (noisy - added * prediction) / kept, prediction


def guided(
    prediction: Float[Tensor, "b c h w"], without: Float[Tensor, "b c h w"], scale: float
) -> Float[Tensor, "b c h w"]:
    """Classifier-free guidance u + w (c - u) of predictions with and without the prompt; w = 1 is c (Ho & Salimans)."""
    return without + scale * (prediction - without)


def solver_step(
    prediction: Float[Tensor, "b c h w"],
    noisy: Float[Tensor, "b c h w"],
    alphas: Float[Tensor, " b"],
    ends: Float[Tensor, " b"],
    kind: str,
) -> Float[Tensor, "b c h w"]:
    """One step of DDIM from ᾱ to the ᾱ of its end: √ᾱ_e x̂ + √(1 - ᾱ_e) ε̂ (Song et al. 2021, eq. 12, η = 0)."""
    clean, noise = clean_and_noise(prediction, noisy, alphas, kind)
    kept, added = _roots(ends)
    return kept * clean + added * noise


def consistent(
    prediction: Float[Tensor, "b c h w"],
    noisy: Float[Tensor, "b c h w"],
    timesteps: Int[Tensor, " b"],
    alphas: Float[Tensor, " b"],
    kind: str,
) -> Float[Tensor, "b c h w"]:
    """f(z, t) = c_skip(t) z + c_out(t) x̂(z, t) (LCM, eq. 9)."""
    at = boundary(timesteps)
    clean, _ = clean_and_noise(prediction, noisy, alphas, kind)
    return at.skip.view(-1, 1, 1, 1) * noisy + at.out.view(-1, 1, 1, 1) * clean


def huber_distance(
    one: Float[Tensor, "b c h w"], other: Float[Tensor, "b c h w"], softness: float
) -> Float[Tensor, " b"]:
    """Mean over one sample's elements of √(d² + s²) - s: |d| for d far beyond s, and d² / 2s for small ones."""
    squares = (one.float() - other.float()).square()
    return ((squares + softness**2).sqrt() - softness).mean(dim=(1, 2, 3))


def _roots(alphas: Tensor) -> tuple[Tensor, Tensor]:
    kept = alphas.view(-1, 1, 1, 1)
    return kept.sqrt(), (1 - kept).sqrt()
