"""What a denoiser predicts, as noise and as clean latents, at a level that all samples share (``parametrisation``)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from diffusemble.latent.base import Level, Prediction
from diffusemble.parametrisation.kinds import coefficients, convert


def to_noise(prediction: Float[Tensor, "b ..."], sample: Tensor, level: Level, kind: Prediction) -> Tensor:
    """ε of a prediction of ``kind`` for latents ``sample`` at ``level``.

    Raises:
        ValueError: the level has no noise, and only the picture was predicted.
    """
    return convert(prediction, sample, level.alpha, level.sigma, kind, "epsilon")


def to_clean(prediction: Float[Tensor, "b ..."], sample: Tensor, level: Level, kind: Prediction) -> Tensor:
    """x₀ of a prediction of ``kind`` for latents ``sample`` at ``level``.

    Raises:
        ValueError: the level is pure noise, and the denoiser predicts just that.
    """
    return convert(prediction, sample, level.alpha, level.sigma, kind, "sample")


def from_noise(noise: Float[Tensor, "b ..."], sample: Tensor, level: Level, kind: Prediction) -> Tensor:
    """The prediction of ``kind`` that says ``noise`` of latents ``sample`` at ``level``.

    Raises:
        ValueError: the level is pure noise, and the kind also speaks of the picture.
    """
    return convert(noise, sample, level.alpha, level.sigma, "epsilon", kind)


def told(noise: Float[Tensor, "b ..."], clean: Tensor, level: Level, kind: Prediction) -> Tensor:
    """What a denoiser of ``kind`` says that knows both ε and x₀."""
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return clean
    of_clean, of_noise = coefficients(level.alpha, level.sigma, kind)
    return of_noise * noise + of_clean * clean
