"""A denoiser without a pipeline: a loop over one's own function, in the shape that aggregation takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]


class PredictPipeline:
    """Latents out of noise by ``predict`` and a scheduler.

    Args:
        predict: ``predict(x, t)`` gives the guided prediction for latents ``x [b ...]``, scaled as the scheduler wants
            it, at timestep ``t``, in the kind that the scheduler takes.
        scheduler: of diffusers.
        decode: from latents to pictures; without it the latents are the result.
    """

    def __init__(self, predict: Predict, scheduler: Any, decode: Callable[[Tensor], Any] | None = None) -> None:
        self.predict, self.scheduler, self.decode = predict, scheduler, decode

    @torch.no_grad()
    def __call__(
        self,
        latents: Tensor | None = None,
        shape: Sequence[int] | None = None,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> ImagePipelineOutput:
        """Draw.

        Args:
            latents: noise of norm one to begin with.
            shape: of the latents ``[b ...]``, where the noise is to be drawn by ``generator``.

        Raises:
            ValueError: neither or both of latents and shape are given.
        """
        if (latents is None) == (shape is None):
            raise ValueError(
                f"A picture begins with noise: give either latents or their shape, such as shape=(1, 4, 64, 64); got "
                f"{'neither' if latents is None else 'both'}."
            )
        scheduler = self.scheduler
        scheduler.set_timesteps(num_inference_steps)
        x = randn_tensor(tuple(shape or ()), generator) if latents is None else latents
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
        more = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(self.predict(scaled, t), t, x, **more, return_dict=False)[0]
        return ImagePipelineOutput(images=x if self.decode is None else self.decode(x))
