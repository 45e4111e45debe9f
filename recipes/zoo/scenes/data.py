"""Scenes of the recipe with their latents: `python -m recipes.zoo scenes.data` (about five minutes on one core)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from diffusemble.evaluation.scenes.scene import Scene
from recipes.zoo.scenes.compose import Icons, options, picture, scenes
from recipes.zoo.settings import DEVICE, WORK
from recipes.zoo.vae import encode


@dataclass(frozen=True)
class Scenes:
    """Scenes and their scaled latents `[n c h w]`."""

    scenes: list[Scene]
    latents: Tensor

    @classmethod
    def load(cls, work: Path, split: str) -> Scenes:
        """What `make` wrote; `split` is `train` or `held`."""
        lines = (work / f"scenes/{split}.jsonl").read_text(encoding="utf-8").splitlines()
        latents = torch.load(work / f"scenes/{split}.pt", weights_only=True).float()
        return cls([Scene.from_row(json.loads(line)) for line in lines], latents)


def pictures(asked: list[Scene], icons: Icons) -> Tensor:
    """uint8 `[n 3 side side]`."""
    return torch.from_numpy(np.stack([picture(scene, icons) for scene in asked])).permute(0, 3, 1, 2)


def write(work: Path, split: str, asked: list[Scene], icons: Icons) -> None:
    """Encode scenes and write `work/scenes/<split>`."""
    vae = (
        AutoencoderKL.from_pretrained(work / "vae").requires_grad_(False).to(DEVICE, memory_format=torch.channels_last)
    )
    found = []
    for start in range(0, len(asked), 64):
        batch = pictures(asked[start : start + 64], icons).to(DEVICE)
        found.append((encode(vae, batch)[0] * vae.config.scaling_factor).cpu().half())
    folder = work / "scenes"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(torch.cat(found), folder / f"{split}.pt")
    text = "".join(json.dumps(scene.as_row()) + "\n" for scene in asked)
    (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def make(work: Path = WORK) -> None:
    """Write the training scenes, and the held-out ones: half of each kind of pair never shown together."""
    icons, settings = Icons.load(work), options()
    half = settings["held"] // 2
    if not (work / "scenes/held.jsonl").exists():
        held = [s for split in ("things", "colours") for s in scenes(icons, (split,), half, coloured=True)]
        write(work, "held", held, icons)
    if not (work / "scenes/train.jsonl").exists():
        write(work, "train", list(scenes(icons, ("train",), settings["train"])), icons)
