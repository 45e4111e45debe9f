"""Members without models, and a way to combine that only looks on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusemble import Member
from diffusemble.latent.base import Moment, Step
from diffusemble.latent.predict import PredictPipeline
from tiny import tiny_scheduler
from unet_inputs import randn

SHAPE = (1, 4, 8, 8)


class Toy:
    """A denoiser that draws the same picture, whatever the noise: x_0 + what it sees."""

    def __init__(self, seed: int) -> None:
        self.picture, self.calls = randn(*SHAPE, seed=seed), 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(x - self.picture)


def toy(name: str, seed: int, scheduler: Any = None, **more: Any) -> Member:
    return Member(name, PredictPipeline(Toy(seed), scheduler or tiny_scheduler()), {"shape": SHAPE}, **more)


class Recorded:
    """Notes every step and exchanges nothing."""

    def __init__(self, moment: Moment = "latents") -> None:
        self.moment: Moment = moment
        self.steps: list[tuple[Step, ...]] = []

    def __call__(self, steps: Sequence[Step]) -> Sequence[Tensor]:
        self.steps.append(tuple(steps))
        return [step.prediction if step.stepped is None else step.stepped for step in steps]
