"""A trial of a scheduler: a copy of it draws one known picture with a denoiser that knows it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusemble.latent.base import Level, Prediction
from diffusemble.latent.predictions import told

STEPS = 10
"""Of a trial, or as many as the scheduler is set to if those are fewer."""

PICTURE = 0.5
SIDE = 128
HEARD = 0.05
"""Share of a change in the latents' noise that a step must pass on; one that starts anew passes on nothing."""

Levels = Callable[[Any, Tensor], tuple[Level, Level]]


@dataclass(frozen=True)
class Trial:
    """What came out.

    Attributes:
        worst: largest difference of picture or noise from the level after a step, relative to that level.
        at: the step of it, from 1.
        ignored: number of steps that do not start from the latents they are given.
        steps: of the trial.
    """

    worst: float
    at: int
    ignored: int
    steps: int


def try_out(scheduler: Any, kind: Prediction, levels: Levels) -> Trial:
    """Draw with a copy of ``scheduler``, in ten steps at most; neither it nor the global generator is touched.

    Every step is taken three times: plainly; with other noise in its latents (and in the prediction, which knows it),
    which must show in the result unless the step draws fresh noise; and with another seed, which tells whether it does.
    """
    scheduler, ignored = _ready(scheduler), 0
    with torch.random.fork_rng(devices=[]):
        noise, other = _standard(1), _standard(2)
        offs = []
        for seed, timestep in enumerate(scheduler.timesteps, start=3):
            before, after = levels(scheduler, timestep)
            changed = _step(copy.deepcopy(scheduler), timestep, before, noise + other, kind, seed)
            redrawn = _step(copy.deepcopy(scheduler), timestep, before, noise, kind, seed - 1)
            stepped = _step(scheduler, timestep, before, noise, kind, seed)
            rest = stepped - after.alpha * PICTURE
            offs.append(max(float(rest.mean().abs()), abs(float(rest.std()) - after.sigma)) / after.size)
            if after.sigma > 0:
                answer = float(((changed - stepped) / after.sigma * other).mean())
                ignored += abs(answer) < HEARD and torch.equal(stepped, redrawn)
                noise = rest / after.sigma
    return Trial(max(offs), offs.index(max(offs)) + 1, ignored, len(offs))


def _ready(scheduler: Any) -> Any:
    own = copy.deepcopy(scheduler)
    shifts = {"mu": 1.0} if own.config.get("use_dynamic_shifting", False) else {}
    own.set_timesteps(min(getattr(own, "num_inference_steps", None) or STEPS, STEPS), device="cpu", **shifts)
    return own


def _step(scheduler: Any, timestep: Tensor, before: Level, noise: Tensor, kind: Prediction, seed: int) -> Tensor:
    torch.default_generator.manual_seed(seed)  # and no accelerator's
    sample = before.alpha * PICTURE + before.sigma * noise
    prediction = told(noise, torch.full_like(noise, PICTURE), before, kind)
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(sample, timestep)  # some schedulers warn without
    stepped: Tensor = scheduler.step(prediction, timestep, sample, return_dict=False)[0]
    return stepped


def _standard(seed: int) -> Tensor:
    """Noise of exactly mean 0 and deviation 1, so that what differs is the scheduler's doing."""
    torch.default_generator.manual_seed(seed)
    noise = torch.randn(1, 1, SIDE, SIDE)
    return (noise - noise.mean()) / noise.std()
