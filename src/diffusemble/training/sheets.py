"""Sheets of pictures the ensemble draws while it trains."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffusemble.calls import guidance_of
from diffusemble.samplers import use_sampler
from diffusemble.training.config import SamplesConfig
from diffusemble.training.files import replace_file


def draw_sheet(pipeline: Any, samples: SamplesConfig, size: int, file: Path) -> None:
    """Draw every prompt with its seed and write one PNG, at most eight pictures to a row.

    Raises:
        StorageError: the file could not be written.
    """
    pipeline.set_progress_bar_config(disable=True)
    if samples.scheduler is not None:
        use_sampler(pipeline, samples.scheduler)
    pictures = [
        pipeline(
            prompt=[prompt],  # FLUX.2's pipelines take a picture first
            height=size,
            width=size,
            num_inference_steps=samples.steps,
            **guidance_of(pipeline, samples.guidance, [""]),
            generator=torch.Generator().manual_seed(samples.seed + number),
        ).images[0]
        for number, prompt in enumerate(samples.prompts)
    ]
    columns = min(8, len(pictures))
    page = Image.new("RGB", (columns * size, math.ceil(len(pictures) / columns) * size), "white")
    for number, picture in enumerate(pictures):
        page.paste(picture, (number % columns * size, number // columns * size))
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    replace_file(file, buffer.getvalue())
