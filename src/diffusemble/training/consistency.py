"""The mathematics of latent consistency distillation (Luo et al. 2023, arXiv 2310.04378; Song et al. 2023).

A consistency function f(z_t, t) maps every point of one path of the probability-flow ODE to the path's clean end. It is
learned from neighbours on a path: f(z_s, s) should be f(z_e, e), where the teacher's solver leads from z_s to z_e. All
of it is told in levels of noise, so it holds for diffusions and for flow matching: there the solver's step is Euler's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusemble.parametrisation.kinds import Prediction, factors
from diffusemble.training.levels import shifted, unshifted
from diffusemble.training.objective import FLOW, Diffusion, Level

SIGMA_DATA, TIME_SCALE = 0.5, 10.0
"""σ_data and the scale of t in the boundary condition, those of ``LCMScheduler``."""


@dataclass(frozen=True)
class Boundary:
    """Coefficients ``[b]`` of z and of the predicted clean latents in f."""

    skip: Tensor
    out: Tensor


@dataclass(frozen=True)
class Place:
    """A level of noise, and the times ``[b]`` that a denoiser is told there."""

    level: Level
    times: Tensor


@dataclass(frozen=True)
class Jump:
    """Where the teacher's solver starts and ends."""

    start: Place
    end: Place


def boundary(times: Tensor, kind: str) -> Boundary:
    """c_skip = σ² / ((τ t)² + σ²) and c_out = τ t / √((τ t)² + σ²): at t = 0, f(z, 0) = z exactly (LCM, appendix).

    Of a flow, c_skip = 0 and c_out = 1: its clean latents z - σ u are z itself where σ is 0.
    """
    if kind == FLOW:
        return Boundary(torch.zeros_like(times), torch.ones_like(times))
    scaled = times.float() * TIME_SCALE
    square = scaled.square() + SIGMA_DATA**2
    return Boundary(SIGMA_DATA**2 / square, scaled / square.sqrt())


def jump_on_grid(timesteps: Int[Tensor, " b"], diffusion: Diffusion, grid: int) -> Jump:
    """The grid point above every timestep, and the one before it.

    Args:
        timesteps: points of the schedule, counted from 0.
        diffusion: of T points.
        grid: steps of the solver. Of a diffusion its points are k - 1, 2 k - 1, ... for k = T / grid, those that
            ``LCMScheduler`` draws from with ``original_inference_steps=grid``; before the first comes 0. Of a flow they
            are 1 / grid, 2 / grid, ..., shifted as the experts' own schedule; before the first comes σ = 0.

    Raises:
        ValueError: more grid points than timesteps.
    """
    skip = len(diffusion) // grid
    if skip == 0:
        raise ValueError(
            f"The solver's grid has at most one point per timestep ({len(diffusion)}); got {grid}. Lower grid."
        )
    if diffusion.flows:
        # In float64, which not every accelerator has: on the CPU.
        even = unshifted(diffusion.sigma[timesteps].cpu().double(), diffusion.shift)
        above = (even * grid - 1e-6).ceil().clamp(1, grid)  # a grid point is above itself, however it is rounded
        ends = (shifted(number / grid, diffusion.shift).float().to(timesteps.device) for number in (above, above - 1))
        return Jump(*(Place(Level(1 - sigma, sigma), len(diffusion) * sigma) for sigma in ends))
    start = (torch.div(timesteps, skip, rounding_mode="floor").clamp(max=grid - 1) + 1) * skip - 1
    return Jump(*(Place(diffusion.at(point), diffusion.times[point]) for point in (start, (start - skip).clamp(min=0))))


def guided(
    prediction: Float[Tensor, "b c h w"], without: Float[Tensor, "b c h w"], scale: float
) -> Float[Tensor, "b c h w"]:
    """Classifier-free guidance u + w (c - u) of predictions with and without the prompt; w = 1 is c (Ho & Salimans)."""
    return without + scale * (prediction - without)


def solver_step(
    prediction: Float[Tensor, "b c h w"], noisy: Float[Tensor, "b c h w"], jump: Jump, kind: str
) -> Float[Tensor, "b c h w"]:
    """α_e x̂ + σ_e ε̂ of the prediction's picture x̂ and noise ε̂: one step of DDIM (Song et al. 2021, eq. 12, η = 0).

    Of a flow it is Euler's, z + (σ_e - σ_s) u.
    """
    end = jump.end.level
    return _told(prediction, noisy, jump.start.level, kind, (end.alpha, end.sigma))


def consistent(
    prediction: Float[Tensor, "b c h w"], noisy: Float[Tensor, "b c h w"], place: Place, kind: str
) -> Float[Tensor, "b c h w"]:
    """f(z, t) = c_skip(t) z + c_out(t) x̂(z, t) (LCM, eq. 9)."""
    at, one = boundary(place.times, kind), torch.ones_like(place.level.alpha)
    clean = _told(prediction, noisy, place.level, kind, (one, torch.zeros_like(one)))
    return _each(at.skip) * noisy + _each(at.out) * clean


def huber_distance(
    one: Float[Tensor, "b c h w"], other: Float[Tensor, "b c h w"], softness: float
) -> Float[Tensor, " b"]:
    """Mean over one sample's elements of √(d² + s²) - s: |d| for d far beyond s, and d² / 2s for small ones."""
    squares = (one.float() - other.float()).square()
    return ((squares + softness**2).sqrt() - softness).mean(dim=(1, 2, 3))


def _told(prediction: Tensor, noisy: Tensor, level: Level, kind: str, target: tuple[Tensor, Tensor]) -> Tensor:
    """a x̂ + b ε̂ for ``target`` (a, b), of what is predicted of ``noisy`` at ``level``."""
    of_sample, of_prediction = factors(level.alpha, level.sigma, cast(Prediction, kind), target)
    return _each(of_sample) * noisy + _each(of_prediction) * prediction


def _each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
