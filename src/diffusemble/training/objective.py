"""What training minimises: the error of the predicted noise (Ho et al. 2020) or velocity (Salimans & Ho 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Diffusion:
    """The forward process the experts were trained with.

    Attributes:
        alphas: ᾱ_t for every timestep, ``[t]``, float32.
        prediction_type: ``"epsilon"`` or ``"v_prediction"``, what the experts predict.

    Raises:
        ValueError: another prediction type.
    """

    alphas: Tensor
    prediction_type: str

    def __post_init__(self) -> None:
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"Training knows experts that predict 'epsilon' or 'v_prediction'; their scheduler says "
                f"{self.prediction_type!r}. Use experts of one of these kinds, or correct scheduler_config.json."
            )


@dataclass(frozen=True)
class Batch:
    """Everything one loss is computed from.

    Attributes:
        latents: clean latents x ``[b c h w]``, scaled.
        noise: ε ~ N(0, 1), ``[b c h w]``.
        timesteps: t ``[b]``.
        inputs: the denoiser's further keyword arguments (``encoder_hidden_states``, ...), packed.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    inputs: Mapping[str, Any]

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        return Batch(
            self.latents.to(device), self.noise.to(device), self.timesteps.to(device), _to(dict(self.inputs), device)
        )


ErrorTerms = Literal["prediction", "noise", "velocity", "image", "min-snr"]

Objective = Callable[[Callable[..., Any], Batch, Diffusion], Tensor]
"""An objective takes the ensemble, a batch and the forward process, and gives one loss per sample ``[b]``."""


def add_noise(
    latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], alphas: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """x_t = √ᾱ x + √(1 - ᾱ) ε (Ho et al. 2020, eq. 4), ᾱ being that of every sample's timestep."""
    kept = alphas.view(-1, 1, 1, 1)
    return kept.sqrt() * latents + (1 - kept).sqrt() * noise


def velocity(
    latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], alphas: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """v = √ᾱ ε - √(1 - ᾱ) x (Salimans & Ho 2022, appendix D)."""
    kept = alphas.view(-1, 1, 1, 1)
    return kept.sqrt() * noise - (1 - kept).sqrt() * latents


def squared_error(prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Mean over one sample's elements of the squared difference, in float32."""
    return (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))


def noise_error(denoise: Callable[..., Any], batch: Batch, diffusion: Diffusion) -> Float[Tensor, " b"]:
    """AFA's objective (section 3.3): ‖ε - ε_θ(x_t, c, t)‖², or the same of the velocity for experts that predict it."""
    alphas = diffusion.alphas[batch.timesteps]
    noisy = add_noise(batch.latents, batch.noise, alphas)
    (prediction,) = denoise(noisy, batch.timesteps, **batch.inputs, return_dict=False)
    aim = batch.noise if diffusion.prediction_type == "epsilon" else velocity(batch.latents, batch.noise, alphas)
    return squared_error(prediction, aim)


def error_weights(
    error: ErrorTerms, prediction_type: str, alphas: Float[Tensor, " b"], gamma: float = 5.0
) -> Float[Tensor, " b"]:
    """What the squared error of the prediction is multiplied with to be an error in other terms.

    A prediction says x_t, ε, x and v together, so their errors are multiples of each other: with ᾱ, and s = ᾱ / (1 - ᾱ)
    the signal-to-noise ratio, ‖Δε‖² = ᾱ ‖Δv‖² and ‖Δx‖² = (1 - ᾱ) ‖Δv‖².

    Args:
        error: ``"prediction"``, ``"noise"``, ``"velocity"``, ``"image"`` for x, or ``"min-snr"``: min(s, γ) ‖Δx‖²
            (Hang et al. 2023, arXiv 2303.09556), which counts steps of little noise less than ``"noise"`` does.
        prediction_type: ``"epsilon"`` or ``"v_prediction"``, what the experts predict.
        alphas: ᾱ of every sample.
        gamma: γ.
    """
    if error == "prediction":
        return torch.ones_like(alphas)
    of_velocity = {
        "noise": alphas,
        "velocity": torch.ones_like(alphas),
        "image": 1 - alphas,
        "min-snr": torch.minimum(alphas, gamma * (1 - alphas)),
    }[error]
    return of_velocity if prediction_type == "v_prediction" else of_velocity / alphas


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


def _to(value: Any, device: torch.device) -> Any:
    return {name: _to(part, device) for name, part in value.items()} if isinstance(value, dict) else value.to(device)
