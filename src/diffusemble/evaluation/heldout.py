"""Held-out denoising loss: exact, cheap, and the same noise for every system, so that systems compare in pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusemble.evaluation.pictures import generator_of

Predict = Callable[[Tensor, Tensor, Sequence[str]], Tensor]
"""``predict(x_t [b c h w], t [b], prompts) -> noise [b c h w]``."""


@dataclass(frozen=True)
class HeldOut:
    """Pictures to predict the noise of: scaled latents ``[n c h w]``, prompts, and keys that seed their noise."""

    keys: tuple[str, ...]
    prompts: tuple[str, ...]
    latents: Tensor

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.keys)

    def __getitem__(self, part: slice) -> HeldOut:
        """Some of the pictures."""
        return HeldOut(self.keys[part], self.prompts[part], self.latents[part])

    def noise(self, time: int, draw: int, seed: int) -> Tensor:
        """Standard normal noise ``[n c h w]`` that depends on picture, time, draw and seed alone."""
        shape = self.latents.shape[1:]
        return torch.stack([torch.randn(shape, generator=generator_of(seed, key, time, draw)) for key in self.keys])


@torch.no_grad()
def losses(
    predict: Predict, held: HeldOut, alphas: Tensor, times: Sequence[int], draws: int = 1, seed: int = 0
) -> Float[Tensor, "n t"]:
    """Mean squared error of the predicted noise for every picture and timestep.

    Args:
        predict: the system; it may predict in one batch all it is given.
        held: pictures.
        alphas: ᾱ of every training timestep (``scheduler.alphas_cumprod``).
        times: timesteps.
        draws: noises for each picture and timestep; the loss is their mean.
        seed: of the noise.

    Raises:
        ValueError: no pictures, or a timestep the schedule does not have.
    """
    if not len(held):
        raise ValueError("A held-out loss needs at least one picture; got none. Check the split and its filter.")
    if not all(0 <= time < len(alphas) for time in times):
        raise ValueError(
            f"The schedule has the timesteps 0 to {len(alphas) - 1}; got {list(times)}. Choose among those."
        )
    found = torch.zeros(len(held), len(times), dtype=torch.float64)
    for column, time in enumerate(times):
        for draw in range(draws):
            noise = held.noise(time, draw, seed).to(held.latents)
            noisy = diffuse(held.latents, noise, alphas[time])
            predicted = predict(noisy, torch.full((len(held),), time, device=noisy.device), held.prompts)
            error = (predicted.float() - noise.float()).square().mean(dim=(1, 2, 3))
            found[:, column] += error.double().cpu() / draws
    return found


def diffuse(latents: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """x_t = √ᾱ x + √(1 - ᾱ) ε (Ho et al. 2020, eq. 4)."""
    return alpha.sqrt().to(latents) * latents + (1 - alpha).sqrt().to(latents) * noise


def as_noise(prediction: Tensor, noisy: Tensor, alpha: Tensor, prediction_type: str) -> Tensor:
    """The noise ε in what a denoiser predicts.

    Args:
        prediction: output ``[b c h w]`` for ``noisy`` x_t ``[b c h w]``.
        noisy: x_t.
        alpha: ᾱ of its timestep, ``[b]``.
        prediction_type: ``"epsilon"``, or ``"v_prediction"``: ε = √ᾱ v + √(1 - ᾱ) x_t (Salimans & Ho 2022).

    Raises:
        ValueError: another prediction type.
    """
    if prediction_type == "epsilon":
        return prediction
    if prediction_type == "v_prediction":
        kept = alpha.view(-1, 1, 1, 1).to(prediction)
        return kept.sqrt() * prediction + (1 - kept).sqrt() * noisy
    raise ValueError(
        f"A held-out loss knows models that predict 'epsilon' or 'v_prediction'; the scheduler says "
        f"{prediction_type!r}. Correct scheduler_config.json, or use other models."
    )


@torch.no_grad()
def encode_images(vae: Any, images: Tensor, batch: int = 64) -> Tensor:
    """Scaled latents ``[n c h w]`` of images ``[n 3 h w]`` in [0, 1]: the mode of the VAE's distribution."""
    parts = []
    for part in images.split(batch):
        encoded = vae.encode((2 * part - 1).to(vae.device, vae.dtype)).latent_dist
        parts.append(encoded.mode() * vae.config.scaling_factor)
    return torch.cat(parts)


@torch.no_grad()
def decode_latents(vae: Any, latents: Tensor, batch: int = 64) -> Tensor:
    """Images ``[n 3 h w]`` in [0, 1] of scaled latents."""
    parts = [vae.decode(part / vae.config.scaling_factor).sample for part in latents.split(batch)]
    return (torch.cat(parts).float() / 2 + 0.5).clamp(0, 1)
