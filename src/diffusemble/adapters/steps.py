"""Which step of a picture a denoiser's call belongs to, as far as its arguments tell."""

from __future__ import annotations

from typing import Any

import torch


class StepCount:
    """Counts the steps of a pipeline's runs by the times at which its denoiser is asked.

    Args:
        pipeline: a diffusers pipeline.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._first = self._last = -1

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
        """Number of the step from 0, and of all steps, of a call with these arguments."""
        time = torch.as_tensor(args[1] if len(args) > 1 else kwargs["timestep"]).reshape(-1)[0]
        times = self._pipeline.scheduler.timesteps
        index = int((times.to(time.device) - time).abs().argmin())
        if index < self._last or self._first < 0:  # another run begins
            self._first = index
        self._last = index
        # T2I-adapters' pipelines do not count, and draw all steps.
        return index - self._first, getattr(self._pipeline, "num_timesteps", len(times))
