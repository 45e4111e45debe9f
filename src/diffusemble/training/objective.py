"""What training minimises: the error of what the experts predict, be it noise, velocity, picture or flow.

All of them see x_t = α_t x + σ_t ε, latents x with noise ε ~ N(0, 1) at a level (α, σ):

    diffusion       α² + σ² = 1, α² = ᾱ_t          Ho et al. 2020, arXiv 2006.11239
    flow matching   α + σ = 1                      Liu et al. 2022, arXiv 2209.03003; FLUX, SD3

and predict one of

    epsilon           ε                            Ho et al. 2020, eq. 14
    v_prediction      v = α ε - σ x                Salimans & Ho 2022, arXiv 2202.00512, appendix D
    sample            x
    flow_prediction   u = ε - x = dx_t / dσ        Esser et al. 2024, arXiv 2403.03206, section 2
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

DIFFUSION = ("epsilon", "v_prediction", "sample")
FLOW: Final = "flow_prediction"


@dataclass(frozen=True)
class Level:
    """How much of the latents and of noise every sample holds, ``[b]`` each: x_t = α x + σ ε."""

    alpha: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Diffusion:
    """The forward process the experts were trained with.

    Attributes:
        alpha: α of every point of the schedule, ``[t]``, float32, from little noise to much.
        sigma: σ of the same.
        times: what a denoiser is told at each, ``[t]``, in the scheduler's unit.
        prediction_type: what the experts predict: one of ``DIFFUSION``, or ``FLOW``.
        shift: for ``FLOW``, how far the experts' own schedule leans to much noise (``levels.shifted``).

    Raises:
        ValueError: another prediction type.
    """

    alpha: Tensor
    sigma: Tensor
    times: Tensor
    prediction_type: str
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.prediction_type not in (*DIFFUSION, FLOW):
            raise ValueError(
                f"Training knows experts that predict {', '.join(map(repr, DIFFUSION))} or {FLOW!r}; their scheduler "
                f"says {self.prediction_type!r}. Use experts of one of these kinds, or correct scheduler_config.json."
            )

    @classmethod
    def preserving(cls, cumulative: Float[Tensor, " t"], prediction_type: str) -> Diffusion:
        """Diffusion with ᾱ_t of every timestep: α = √ᾱ, σ = √(1 - ᾱ)."""
        return cls(cumulative.sqrt(), (1 - cumulative).sqrt(), torch.arange(len(cumulative)), prediction_type)

    @classmethod
    def flow(cls, count: int, shift: float = 1.0) -> Diffusion:
        """Flow matching at σ = 1/T, 2/T, ..., 1, told as T σ; equal steps, so that runs compare at any ``shift``."""
        sigma = torch.arange(1, count + 1) / count
        return cls(1 - sigma, sigma, count * sigma, FLOW, shift)

    def __len__(self) -> int:
        """T, number of timesteps."""
        return len(self.times)

    @property
    def flows(self) -> bool:
        """Whether this is flow matching."""
        return self.prediction_type == FLOW

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.alpha.device

    def to(self, device: torch.device) -> Diffusion:
        """The same process on ``device``."""
        tables = {name: getattr(self, name).to(device) for name in ("alpha", "sigma", "times")}
        return replace(self, **tables)

    def at(self, timesteps: Int[Tensor, " b"]) -> Level:
        """The level at points of the schedule, counted from 0."""
        return Level(self.alpha[timesteps], self.sigma[timesteps])


@dataclass(frozen=True)
class Batch:
    """Everything one loss is computed from.

    Attributes:
        latents: clean latents x ``[b c h w]``, scaled.
        noise: ε ~ N(0, 1), ``[b c h w]``.
        timesteps: points of the schedule, counted from 0, ``[b]``.
        inputs: the denoiser's further keyword arguments (``encoder_hidden_states``, ...), packed.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    inputs: Mapping[str, Any]

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        parts = (self.latents, self.noise, self.timesteps, self.inputs)
        return Batch(*(to_device(part, device) for part in parts))


Denoise = Callable[[Tensor, Tensor, Mapping[str, Any]], Tensor]
"""``denoise(x_t [b c h w], times [b], inputs) -> prediction [b c h w]``: the ensemble, called as its experts are."""

Objective = Callable[[Denoise, Batch, Diffusion], Tensor]
"""An objective takes the ensemble, a batch and the forward process, and gives one loss per sample ``[b]``."""


def add_noise(
    latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], level: Level
) -> Float[Tensor, "b c h w"]:
    """x_t = α x + σ ε."""
    return _each(level.alpha) * latents + _each(level.sigma) * noise


def target_of(
    latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], level: Level, prediction_type: str
) -> Float[Tensor, "b c h w"]:
    """What a denoiser of this kind should predict; the table above."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    if prediction_type == FLOW:
        return noise - latents
    return _each(level.alpha) * noise - _each(level.sigma) * latents


def squared_error(prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Mean over one sample's elements of the squared difference, in float32."""
    return (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))


def prediction_error(denoise: Denoise, batch: Batch, diffusion: Diffusion) -> Float[Tensor, " b"]:
    """The squared error of what the experts predict: for noise, ‖ε - ε_θ(x_t, c, t)‖² (AFA, section 3.3)."""
    level = diffusion.at(batch.timesteps)
    noisy = add_noise(batch.latents, batch.noise, level)
    prediction = denoise(noisy, diffusion.times[batch.timesteps], batch.inputs)
    return squared_error(prediction, target_of(batch.latents, batch.noise, level, diffusion.prediction_type))


def _each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def to_device(value: Any, device: torch.device) -> Any:
    """A tensor, or a dictionary of them at any depth, on ``device``."""
    if isinstance(value, Mapping):
        return {name: to_device(part, device) for name, part in value.items()}
    return value.to(device)
