"""What a denoiser predicts, as noise and as clean latents: x = α x₀ + σ ε at any level.

With n = √(α² + σ²), which is 1 where the variance is preserved:

    epsilon         ε
    sample          x₀
    v_prediction    (α ε - σ x₀) / n      (arXiv 2202.00512, appendix D; in Euler's space divided by n)
    flow_prediction ε - x₀                (arXiv 2210.02747 in diffusers' direction of time)
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from diffusemble.latent.base import Level, Prediction


def to_noise(prediction: Float[Tensor, "b ..."], sample: Tensor, level: Level, kind: Prediction) -> Tensor:
    """ε of a prediction of ``kind`` for latents ``sample`` at ``level``.

    Raises:
        ValueError: the level has no noise, and only noise was not predicted.
    """
    alpha, sigma = level.alpha, level.sigma
    if kind == "epsilon":
        return prediction
    if kind == "v_prediction":
        return (sigma * sample + alpha * level.size * prediction) / level.size**2
    if kind == "flow_prediction":
        return (sample + alpha * prediction) / (alpha + sigma)
    if sigma == 0:
        raise ValueError(
            "Clean latents (sigma 0) hold no noise that could be told from a predicted sample. Ask before it."
        )
    return (sample - alpha * prediction) / sigma


def to_clean(prediction: Float[Tensor, "b ..."], sample: Tensor, level: Level, kind: Prediction) -> Tensor:
    """x₀ of a prediction of ``kind`` for latents ``sample`` at ``level``.

    Raises:
        ValueError: the level is pure noise, and the denoiser predicts just that.
    """
    alpha, sigma = level.alpha, level.sigma
    if kind == "sample":
        return prediction
    if kind == "v_prediction":
        return (alpha * sample - sigma * level.size * prediction) / level.size**2
    if kind == "flow_prediction":
        return (sample - sigma * prediction) / (alpha + sigma)
    if alpha == 0:
        raise ValueError(
            "Latents of pure noise (alpha 0) say nothing of the picture to a denoiser that predicts noise. Use models "
            "that predict velocity or the picture, or a schedule whose last level keeps some of it."
        )
    return (sample - sigma * prediction) / alpha


def from_noise(noise: Float[Tensor, "b ..."], sample: Tensor, level: Level, kind: Prediction) -> Tensor:
    """The prediction of ``kind`` that says ``noise`` of latents ``sample`` at ``level``.

    Raises:
        ValueError: the level is pure noise, and the kind also speaks of the picture.
    """
    return noise if kind == "epsilon" else told(noise, to_clean(noise, sample, level, "epsilon"), level, kind)


def told(noise: Float[Tensor, "b ..."], clean: Tensor, level: Level, kind: Prediction) -> Tensor:
    """What a denoiser of ``kind`` says that knows both ε and x₀."""
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return clean
    if kind == "flow_prediction":
        return noise - clean
    return (level.alpha * noise - level.sigma * clean) / level.size
