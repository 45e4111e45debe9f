"""Pictures as tensors, and sheets of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def read_rows(work: Path) -> list[dict[str, str]]:
    """The lines of the data's `metadata.jsonl`."""
    with (work / "data/metadata.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read_pictures(paths: list[Path]) -> Tensor:
    """uint8 `[n 3 h w]` of picture files of one size."""
    stacked = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def to_signed(pictures: Tensor) -> Tensor:
    """uint8 -> float in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def write_sheet(rows: list[Tensor], path: Path, zoom: int = 1) -> None:
    """A sheet of float `[n 3 h w]` pictures in [-1, 1], one row for each tensor."""
    lines = [torch.cat(list(row.clamp(-1, 1)), dim=2) for row in rows]
    page = ((torch.cat(lines, dim=1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(page)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path, optimize=True)
