"""Which levels of noise training draws, and how often.

Densities are over t from 0 (no noise) to 1: the place in a diffusion's schedule, or σ of flow matching. They are those
of Esser et al. 2024 (SD3, arXiv 2403.03206, section 3.1), given as probabilities of the T points of a schedule; point k
stands for t from k/T to (k + 1)/T.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusemble.training.loss_config import LevelsConfig
from diffusemble.training.objective import Diffusion

_HALVINGS = 60  # of an interval: more than float64 resolves


def probabilities(levels: LevelsConfig, diffusion: Diffusion) -> Float[Tensor, " t"] | None:
    """How probable every point of the schedule is, float64; None where all are alike.

    For flow matching the density is shifted as ``levels.shift`` says, by default as the experts' own schedule.

    Raises:
        ValueError: a shift for a diffusion.
    """
    if levels.shift is not None and not diffusion.flows:
        raise ValueError(
            f"levels.shift moves the levels of flow matching (FLUX, SD3), but these experts predict "
            f"{diffusion.prediction_type!r} of a diffusion, whose schedule is fixed. Leave levels.shift out; to train "
            f"on much noise more often, choose a levels.mean above 0 or narrow timesteps."
        )
    density = levels.density or ("logit-normal" if diffusion.flows else "uniform")
    shift = (levels.shift or diffusion.shift) if diffusion.flows else 1.0
    if density == "uniform" and shift == 1:
        return None
    edges = unshifted(torch.linspace(0, 1, len(diffusion) + 1, dtype=torch.float64), shift)
    if density == "logit-normal":
        return logit_normal(edges, levels.mean, levels.spread).diff()
    return {"uniform": edges, "mode": mode(edges, levels.scale), "cosmap": cosmap(edges)}[density].diff()


def logit_normal(t: Float[Tensor, " k"], mean: float, spread: float) -> Float[Tensor, " k"]:
    """P(T ≤ t) = Φ((logit t - m) / s): log-odds of the noise are normal (SD3, eq. 19)."""
    return torch.special.ndtr((torch.logit(t) - mean) / spread)


def mode(t: Float[Tensor, " k"], scale: float) -> Float[Tensor, " k"]:
    """P(T ≤ t) of T = 1 - u - s (cos²(π u / 2) - 1 + u) for uniform u (SD3, eq. 20), which falls with u.

    Its inverse has no closed form; it is found by bisection.
    """
    low, high = torch.zeros_like(t), torch.ones_like(t)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = 1 - middle - scale * ((math.pi * middle / 2).cos().square() - 1 + middle) > t
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return 1 - (low + high) / 2


def cosmap(t: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """P(T ≤ t) of density 2 / (π (1 - 2 t + 2 t²)): T = 1 - 1 / (tan(π u / 2) + 1) for uniform u (SD3, section 3.1)."""
    return 2 / math.pi * torch.atan2(t, 1 - t)


def shifted(t: Float[Tensor, " k"], shift: float) -> Float[Tensor, " k"]:
    """σ = s t / (1 + (s - 1) t): large pictures need more noise to lose as much (SD3, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


def unshifted(sigma: Float[Tensor, " k"], shift: float) -> Float[Tensor, " k"]:
    """Undo ``shifted``: t = σ / (s - (s - 1) σ)."""
    return sigma / (shift - (shift - 1) * sigma)


def bucket_times(count: int, buckets: int, timesteps: int, generator: torch.Generator) -> Int[Tensor, "n k"]:
    """One timestep per picture and bucket: bucket k of K is the range [k T / K, (k + 1) T / K).

    Raises:
        ValueError: more buckets than timesteps.
    """
    if buckets > timesteps:
        raise ValueError(f"There are {timesteps} timesteps, so at most as many buckets; got {buckets}. Ask for fewer.")
    edges = torch.arange(buckets + 1) * timesteps // buckets
    drawn = torch.rand(count, buckets, generator=generator)
    return edges[:-1] + (drawn * (edges[1:] - edges[:-1])).long()
