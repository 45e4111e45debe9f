"""The learning rate of every optimiser step."""

from __future__ import annotations

import math

from diffusemble.training.config import RunConfig


def rate_at(step: int, config: RunConfig) -> float:
    """Rate of optimiser step ``step`` = 0, 1, ...: w steps of linear warm-up (the first has 1/w of the rate), then
    constant, or half a cosine that ends at zero after the last step.

    A function of the step alone: neither accumulated parts nor the number of processes can move it.
    """
    if step < config.warmup:
        return config.rate * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.rate
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
