"""Held-out denoising loss: exact, cheap, and the same noise for every system, so that systems compare in pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusemble.evaluation.pictures import generator_of
from diffusemble.experts.folder import quiet
from diffusemble.parametrisation.kinds import Prediction, convert
from diffusemble.training.objective import FLOW, Diffusion, Level, add_noise, target_of

Predict = Callable[[Tensor, Tensor, Sequence[str]], Tensor]
"""``predict(x_t [b c h w], points of the schedule [b], prompts)`` in the terms of ``terms_of``, ``[b c h w]``."""


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


@dataclass(frozen=True)
class Trial:
    """One noise for all pictures: ``noisy [n c h w]`` at ``times [n]``, and what to predict of it, ``[n c h w]``.

    ``column`` is the place of the timestep among those that are measured.
    """

    column: int
    noisy: Tensor
    times: Tensor
    target: Tensor


@torch.no_grad()
def losses(
    predict: Predict, held: HeldOut, diffusion: Diffusion, times: Sequence[int], draws: int = 1, seed: int = 0
) -> Float[Tensor, "n t"]:
    """Mean squared error of what is predicted, for every picture and timestep.

    The noise is the same for every system; so are the terms, those of ``terms_of``.

    Args:
        predict: the system; it may predict in one batch all it is given.
        held: pictures.
        diffusion: the process of the system's scheduler (``training.schedule.process_of``).
        times: points of its schedule, counted from 0: timesteps, or T σ - 1 of flow matching.
        draws: noises for each picture and timestep; the loss is their mean.
        seed: of the noise.

    Raises:
        ValueError: no pictures, or a timestep the schedule does not have.
    """
    found = torch.zeros(len(held), len(times), dtype=torch.float64)
    for trial in trials(held, diffusion, times, draws, seed):
        error = (predict(trial.noisy, trial.times, held.prompts).float() - trial.target.float()).square()
        found[:, trial.column] += error.mean(dim=(1, 2, 3)).cpu().double() / draws
    return found


def trials(held: HeldOut, diffusion: Diffusion, times: Sequence[int], draws: int, seed: int) -> Iterator[Trial]:
    """Every timestep and draw, in order; see ``losses``."""
    if not len(held):
        raise ValueError("A held-out loss needs at least one picture; got none. Check the split and its filter.")
    if not all(0 <= time < len(diffusion) for time in times):
        raise ValueError(
            f"The schedule has the timesteps 0 to {len(diffusion) - 1}; got {list(times)}. Choose among those."
        )
    for column, time in enumerate(times):
        for draw in range(draws):
            noise = held.noise(time, draw, seed).to(held.latents)
            at = torch.full((len(held),), time, device=noise.device)
            level = diffusion.to(noise.device).at(at)
            level = Level(level.alpha.to(noise), level.sigma.to(noise))
            noisy = add_noise(held.latents, noise, level)
            yield Trial(column, noisy, at, target_of(held.latents, noise, level, terms_of(diffusion)))


def terms_of(diffusion: Diffusion) -> Prediction:
    """In which terms systems are compared: the noise, or the velocity of flow matching."""
    return FLOW if diffusion.flows else "epsilon"


def in_terms(prediction: Tensor, noisy: Tensor, diffusion: Diffusion, times: Tensor) -> Tensor:
    """What a denoiser of ``diffusion`` predicts, ``[b c h w]``, in the terms of ``terms_of``.

    Raises:
        ValueError: it says nothing of the noise there.
    """
    level = diffusion.to(noisy.device).at(times)
    alpha, sigma = (part.view(-1, 1, 1, 1).to(prediction) for part in (level.alpha, level.sigma))
    kind: Any = diffusion.prediction_type
    return convert(prediction, noisy, alpha, sigma, kind, terms_of(diffusion))


@torch.no_grad()
def encode_images(vae: Any, images: Tensor, batch: int = 64) -> Tensor:
    """Scaled latents ``[n c h w]`` of images ``[n 3 h w]`` in [0, 1], from the mode of the VAE's distribution."""
    parts, kind = [], vae.dtype
    with _wide(vae):
        for part in images.split(batch):
            encoded = vae.encode((2 * part - 1).to(vae.device, vae.dtype)).latent_dist
            parts.append((encoded.mode() - (vae.config.shift_factor or 0)) * vae.config.scaling_factor)
    return torch.cat(parts).to(kind)


@torch.no_grad()
def decode_latents(vae: Any, latents: Tensor, batch: int = 64) -> Tensor:
    """Images ``[n 3 h w]`` in [0, 1] of scaled latents."""
    shift = vae.config.shift_factor or 0
    with _wide(vae):
        given = (latents.to(vae.dtype) / vae.config.scaling_factor + shift).split(batch)
        parts = [vae.decode(part).sample for part in given]
    return (torch.cat(parts).float() / 2 + 0.5).clamp(0, 1)


@contextmanager
def _wide(vae: Any) -> Iterator[None]:
    """In float32, and back: SDXL's VAE overflows in float16, and says so (``force_upcast``)."""
    kind = vae.dtype
    widens = kind == torch.float16 and bool(vae.config.get("force_upcast"))
    if widens:
        vae.float()
    try:
        yield
    finally:
        if widens:
            with quiet():
                vae.to(kind)
