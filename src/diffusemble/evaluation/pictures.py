"""The captioned pictures an evaluation measures on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

METADATA = "metadata.jsonl"
COLUMNS = ("file_name", "text", "concept", "style", "topic", "split")


@dataclass(frozen=True)
class Row:
    """One line of ``metadata.jsonl``; ``split`` is ``train``, ``pair`` or ``concept``."""

    file_name: str
    text: str
    concept: str
    style: str
    topic: str
    split: str


def read_rows(folder: Path) -> tuple[Row, ...]:
    """Lines of the folder's ``metadata.jsonl``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a line lacks a column.
    """
    file = folder / METADATA
    if not file.is_file():
        raise FileNotFoundError(
            f"The evaluation needs captioned pictures, but there is no {file}. Make the zoo's with "
            f"`python -m recipes.zoo data`, or give an imagefolder as data."
        )
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        values = json.loads(line)
        for column in COLUMNS:
            if column not in values:
                raise ValueError(f"{file}, line {number}: the column {column!r} is missing. Add it to every line.")
        rows.append(Row(**{column: values[column] for column in COLUMNS}))
    return tuple(rows)


def choose(rows: Sequence[Row], split: str, count: int | None, folder: Path) -> tuple[Row, ...]:
    """``count`` rows of a split at even distances, or all.

    Raises:
        ValueError: the split is empty.
    """
    found = [row for row in rows if row.split == split]
    if not found:
        there = ", ".join(sorted({row.split for row in rows})) or "nothing"
        raise ValueError(
            f"{folder / METADATA} has no pictures of the split {split!r}; it has {there}. Mark held-out pictures with "
            f"split 'pair' (known thing, new style) or 'concept' (new thing), the others with 'train'."
        )
    count = len(found) if count is None else min(count, len(found))
    return tuple(found[index * len(found) // count] for index in range(count))


def read_images(folder: Path, rows: Sequence[Row]) -> Tensor:
    """Pictures of one size as ``[n 3 h w]`` in [0, 1]."""
    arrays = [np.asarray(Image.open(folder / row.file_name).convert("RGB")) for row in rows]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def to_bytes(images: Tensor) -> Any:
    """uint8 array ``[n h w 3]`` of images ``[n 3 h w]`` in [0, 1]."""
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def from_bytes(array: Any) -> Tensor:
    """Undo ``to_bytes``."""
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255


def seed_of(*parts: object) -> int:
    """A seed that depends on ``parts`` alone, so that a picture does not depend on its neighbours or its batch."""
    digest = hashlib.sha256("|".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_of(*parts: object) -> torch.Generator:
    """A CPU generator seeded with ``seed_of(*parts)``."""
    return torch.Generator().manual_seed(seed_of(*parts))
