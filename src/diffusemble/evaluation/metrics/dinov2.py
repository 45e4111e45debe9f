"""DINOv2 features for Fréchet distances (Stein et al. 2023, arXiv 2306.04675)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusemble.evaluation.metrics.base import Device
from diffusemble.evaluation.metrics.pixels import IMAGENET_MEAN, IMAGENET_STD, Preparation
from diffusemble.evaluation.metrics.weights import Published

WEIGHTS = Published("dinov2-large", "facebook/dinov2-large")
SIZE = 224


class Dinov2:
    """Images to the class token of DINOv2 ViT-L/14 after its last normalisation, ``[b 1024]``.

    Args:
        model: a ``transformers.Dinov2Model``.
        device: where it runs; features come back to the CPU.
        size: pixels of the square it sees.
    """

    def __init__(self, model: Any, device: Device = "cpu", size: int = SIZE) -> None:
        self.model = model.requires_grad_(False).eval().to(device, torch.float32)
        self.device = device
        self.prepare = Preparation(size, IMAGENET_MEAN, IMAGENET_STD, fit="stretch")

    @classmethod
    def load(cls, weights: Path | None = None, device: Device = "cpu") -> Dinov2:
        """With the published weights.

        Raises:
            FileNotFoundError: they are neither in the folder nor in the hub's cache.
        """
        from transformers import Dinov2Model

        return cls(Dinov2Model.from_pretrained(WEIGHTS.find(weights)), device, SIZE)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features ``[b d]`` of images ``[b 3 h w]`` in [0, 1], on the CPU."""
        found: Tensor = self.model(pixel_values=self.prepare(images).to(self.device)).pooler_output
        return found.float().cpu()
