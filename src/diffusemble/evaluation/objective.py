"""Held-out loss as something to maximise, for searches that draw nothing (``registry.OBJECTIVES``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusemble.evaluation.heldout import HeldOut, encode_images, losses
from diffusemble.evaluation.pictures import choose, read_images, read_rows
from diffusemble.evaluation.systems import System
from diffusemble.merging.search_config import HeldOutPictures


class HeldOutLoss:
    """Minus the mean squared error of the predicted noise, or of flow matching's velocity.

    Args:
        pictures: which, and at which timesteps.
        vae: encodes them, once.

    Raises:
        FileNotFoundError: the folder has no ``metadata.jsonl``.
        ValueError: the split is empty.
    """

    def __init__(self, pictures: HeldOutPictures, vae: Any) -> None:
        folder = Path(pictures.data)
        rows = choose(read_rows(folder), pictures.split, pictures.count, folder)
        images = read_images(folder, rows).to(next(vae.parameters()).device)
        names, texts = tuple(row.file_name for row in rows), tuple(row.text for row in rows)
        self.held = HeldOut(names, texts, encode_images(vae, images))
        self.times = pictures.times

    def __call__(self, pipeline: Any) -> Tensor:
        """Scores ``[m]``, one for every picture: minus its loss, averaged over the timesteps."""
        system = System("merged", "merged", "control", pipeline)
        with torch.no_grad():
            found = losses(system.predict, self.held, system.diffusion, self.times)
        return -found.mean(dim=1)
