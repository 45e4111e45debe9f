"""Scenes that no model of the zoo was trained on, and pictures of its styles, for measuring controls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from diffusemble.evaluation.scenes.scene import Scene

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER = Path(__file__).with_name("data")


def held_scenes(count: int | None = None) -> list[Scene]:
    """Held-out scenes: half of them pair a subject and an object never shown together, half two colours of them.

    Args:
        count: how many, at even distances; all by default.

    Raises:
        ValueError: more are asked for than there are.
    """
    lines = (FOLDER / "held.jsonl").read_text(encoding="utf-8").splitlines()
    count = len(lines) if count is None else count
    if not 0 < count <= len(lines):
        raise ValueError(f"There are {len(lines)} held-out scenes; {count} were asked for.")
    return [Scene.from_row(json.loads(lines[i * len(lines) // count])) for i in range(count)]


def references(style: str) -> list[Image]:
    """Pictures ``64 x 64`` in a style, of things that neither models nor scenes know.

    Raises:
        ValueError: there are none in that style.
    """
    from PIL import Image

    return [Image.open(file).convert("RGB") for file in reference_files(style)]


def reference_files(style: str) -> list[Path]:
    """Files of the same.

    Raises:
        ValueError: there are none in that style.
    """
    files = sorted((FOLDER / "references").glob(f"{style.replace(' ', '-')}-*.png"))
    if not files:
        known = sorted({file.stem.split("-")[0] for file in (FOLDER / "references").glob("*.png")})
        raise ValueError(f"There are no reference pictures in the style {style!r}; there are for {', '.join(known)}.")
    return files
