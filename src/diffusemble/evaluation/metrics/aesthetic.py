"""AES: the LAION aesthetic predictor, trained on SAC, LAION-Logos and AVA (Schuhmann et al. 2022, arXiv 2210.08402)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from diffusemble.evaluation.metrics.base import Against, Device, Kind
from diffusemble.evaluation.metrics.clip import CLIP_L, Clip
from diffusemble.evaluation.metrics.weights import Published, fill, read_tensors

WEIGHTS = Published(
    "sac+logos+ava1-l14-linearMSE.pth",
    url="https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
    "sac%2Blogos%2Bava1-l14-linearMSE.pth",
)
WIDTH = 768  # of CLIP ViT-L/14's embeddings


class LinearStack(nn.Module):
    """Five linear layers to one number, without anything between them but dropout, which rests when scoring.

    The aesthetic predictor and ImageReward share this head; the numbers of the layers are those of their files.
    """

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        rest = nn.Identity  # holds the place of dropout, so that the layers have their published numbers
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            rest(),
            nn.Linear(1024, 128),
            rest(),
            nn.Linear(128, 64),
            rest(),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[b width]`` to ``[b]``."""
        found: Tensor = self.layers(x).squeeze(1)
        return found


class Aesthetic:
    """About 1 to 10 for every picture, whatever its prompt; higher is better."""

    kind: ClassVar[Kind] = "image"
    higher_is_better: ClassVar[bool] = True
    against: ClassVar[Against] = "prompt"

    def __init__(self, clip: Clip, head: LinearStack) -> None:
        self.clip, self.head = clip, head.requires_grad_(False).eval()

    @classmethod
    def load(cls, weights: Path | None = None, device: Device = "cpu") -> Aesthetic:
        """With the published weights."""
        file, head = WEIGHTS.find(weights), LinearStack(WIDTH)
        fill(head, read_tensors(file), str(file))
        return cls(Clip.load(CLIP_L, weights, device), head)

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """Scores ``[b]`` of images ``[b 3 h w]`` in [0, 1]; prompts are not looked at."""
        found: Tensor = self.head(self.clip.images(images))
        return found
