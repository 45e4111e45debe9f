"""New views of the training pictures: known things in known styles as no expert has seen them.

Every picture is mirrored, turned and scaled a little. The experts know the pictures themselves by heart; what an
aggregator learns on those, it would not find again on new ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from recipes.zoo.loop import step_generator
from recipes.zoo.pictures import read_pictures, read_rows
from recipes.zoo.settings import WORK

TURN, LEAST, MOST = 0.2, 0.85, 1.1  # radians to either side; scale


def turned(pictures: Tensor, seed: int = 0) -> Tensor:
    """Each of uint8 `[n 3 h w]` mirrored, turned by up to `TURN` and scaled, on white."""
    generator = step_generator(seed, 0)
    angle = TURN * (2 * torch.rand(len(pictures), generator=generator) - 1)
    scale = LEAST + (MOST - LEAST) * torch.rand(len(pictures), generator=generator)
    cos, sin, zero = angle.cos() / scale, angle.sin() / scale, torch.zeros(len(pictures))
    theta = torch.stack([torch.stack([-cos, -sin, zero], 1), torch.stack([-sin, cos, zero], 1)], dim=1)
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    ink = F.grid_sample(255 - pictures.float(), grid, align_corners=False)  # outside is no ink
    return (255 - ink).round().clamp(0, 255).byte()


def make(work: Path = WORK) -> None:
    """Write `work/views`: the pictures of the split `train`, seen anew, with their metadata."""
    folder = work / "views"
    if (folder / "metadata.jsonl").exists():
        return
    rows = [row for row in read_rows(work) if row["split"] == "train"]
    for row, view in zip(rows, turned(read_pictures([work / "data" / row["file_name"] for row in rows])), strict=True):
        (folder / row["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(view.permute(1, 2, 0).numpy()).save(folder / row["file_name"])
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
