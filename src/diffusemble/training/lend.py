"""VAE and text encoders where they compute, for as long as they do: training has no room for them beside itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from diffusemble.experts.folder import quiet
from diffusemble.training.feeds.base import denoiser_of


@contextmanager
def lent(pipeline: Any, device: torch.device, exact: bool = False) -> Iterator[None]:
    """All parts of a pipeline but the denoiser on ``device``, and back where they were afterwards.

    Args:
        pipeline: whose denoiser is on ``device``.
        device: where to.
        exact: the VAE in float32, because that of SDXL overflows in half precision.
    """
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    away = [part for part in parts if part is not denoiser_of(pipeline)]
    places, kind = [next(part.parameters()).device for part in away], pipeline.vae.dtype
    for part in away:
        part.to(device)
    if exact:
        pipeline.vae.float()
    try:
        yield
    finally:
        if pipeline.vae.dtype != kind:
            with quiet():
                pipeline.vae.to(kind)
        for part, place in zip(away, places, strict=True):
            part.to(place)
