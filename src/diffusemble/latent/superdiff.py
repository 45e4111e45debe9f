"""SuperDiff: how likely the latents are under each of several models, and weights from that (arXiv 2412.17762).

With y = x / α and s = σ / α every schedule is dy = noise of variance d(s²), and a model's score is -ε / s. Along any
path with that noise, going from s down to s' < s (the paper's Itô density estimator, its theorem on the reverse-time
density, for this process; terms that are the same for all models are left out):

    Δ log q = - ⟨ε, y' - y⟩ / s - (s² - s'²) ‖ε‖² / (2 s²)

which is also the log likelihood of the step y → y' under the model's own Gaussian step, against that of the noising
step y' → y. It needs no derivative of the model. It is exact as steps get small *for stochastic samplers* (DDPM, Euler
ancestral, SDE-DPM-Solver++); a deterministic sampler leaves out the noise whose square the formula counts on, so there
it ranks models by how well they predict what is drawn.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from diffusemble.latent.base import Level


def kept(before: Level, after: Level) -> float:
    """s' / s: which share of the noise, relative to the picture, is left after a step. 0 from pure noise (α = 0)."""
    return (after.sigma / after.alpha) * (before.alpha / before.sigma)


def log_density_change(
    noise: Float[Tensor, "n b d"], start: Float[Tensor, "b d"], end: Tensor, before: Level, after: Level
) -> Float[Tensor, "n b"]:
    """Δ log q of n models along one step, up to what they share (module's formula; finite also from α = 0).

    Args:
        noise: ε of every model at the start.
        start, end: latents before and after the step.
        before, after: their levels.
    """
    moved = before.alpha / (after.alpha * before.sigma) * end - start / before.sigma
    return -(noise * moved).sum(dim=2) - (1 - kept(before, after) ** 2) / 2 * noise.square().sum(dim=2)


def either(log_densities: Float[Tensor, "n b"], temperature: float = 1.0) -> Float[Tensor, "n b"]:
    """OR: κ = softmax over models of T log q. At T = 1, Σ κ_m score_m is the score of the mixture Σ q_m exactly."""
    return (temperature * log_densities).softmax(dim=0)


def both(
    log_densities: Float[Tensor, "n b"], noise: Float[Tensor, "n b d"], fields: Float[Tensor, "n b d"], left: float
) -> Float[Tensor, "n b"]:
    """AND: κ, summing to one, for which the next step is expected to make all log densities equal.

    With the move (s² - s'²) / s · Σ_j κ_j f_j against the noise and h = 1 - left²:
    log q_i + h (⟨ε_i, Σ_j κ_j f_j⟩ - ‖ε_i‖² / 2) is the same for all i. The noise that the step draws is not known
    before it, so what it does to the densities is made good by the next step. The system is solved nearest to equal κ,
    so models that agree share equally.

    Args:
        log_densities: so far.
        noise: ε of every model, which tells its density.
        fields: f of every model, what it would have drawn: its guided noise.
        left: ``kept`` of the coming step.
    """
    # Few numbers, and not every accelerator has float64: on the CPU.
    dimension = noise.shape[2]
    inner = (torch.einsum("ibd,jbd->bij", noise, fields) / dimension).cpu().double()
    squares = (noise.square().mean(dim=2) / 2).T.cpu().double()
    centre = torch.eye(len(noise), dtype=torch.float64) - 1 / len(noise)
    wanted = squares - log_densities.T.cpu().double() / (max(1 - left**2, 1e-6) * dimension)
    rest = (wanted - inner.mean(dim=2)).unsqueeze(2)
    # Differences below this share of the predictions' own size are rounding, not opinions.
    tolerance = 1e-5 * inner.abs().amax(dim=(1, 2))
    inverse = torch.linalg.pinv(centre @ inner @ centre, atol=tolerance, rtol=torch.zeros_like(tolerance))
    tilt = (inverse @ (centre @ rest)).squeeze(2).T
    return (1 / len(noise) + tilt).to(noise)
