"""The published list of prompts: two to six coloured things with boxes each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusemble.evaluation.coco_mig.colours import RANGES
from diffusemble.scene.boxes import check_box

Box = tuple[float, float, float, float]
ARTICLES = ("a", "an", "the")


@dataclass(frozen=True)
class Instance:
    """One thing.

    Attributes:
        label: with article and colour, as prompts say it: "a black dining table".
        box: x1, y1, x2, y2 as shares of the picture.
        colour: one of ``RANGES``.
        thing: the label without article and colour, which the detector is asked for.
    """

    label: str
    box: Box
    colour: str
    thing: str


@dataclass(frozen=True)
class MigPrompt:
    """One prompt of the benchmark; ``key`` is its name in the published file."""

    key: str
    caption: str
    instances: tuple[Instance, ...]

    @property
    def level(self) -> int:
        """Number of things."""
        return len(self.instances)


def read_bench(file: str | Path, count: int | None = None) -> list[MigPrompt]:
    """Read ``mig_bench.json``.

    Args:
        file: as published: ``{"0": {"caption": ..., "segment": [{"label": ..., "bbox": [...]}, ...]}, ...}``.
        count: prompts, at even distances; all by default.

    Raises:
        ValueError: there is no such file, it has another form, or a label has no colour.
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"There is no file {path}. Get mig_bench.json of the MIGC authors and give it as prompts.")
    try:
        data: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        prompts = [
            MigPrompt(key, row["caption"].strip(), tuple(instance_of(t["label"], t["bbox"]) for t in row["segment"]))
            for key, row in data.items()
        ]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not COCO-MIG's list of prompts ({type(error).__name__}: {error}). Each has a caption, and a "
            f"segment with label and bbox for every thing."
        ) from error
    count = len(prompts) if count is None else min(count, len(prompts))
    return [prompts[index * len(prompts) // count] for index in range(count)]


def instance_of(label: str, box: list[float]) -> Instance:
    """A thing from its label, "a red bird", and its box.

    Raises:
        ValueError: the label names no colour of ``RANGES`` before its thing, or the box is none.
    """
    words = [word for word in label.split() if word.lower() not in ARTICLES]
    if len(words) < 2 or words[0] not in RANGES:
        raise ValueError(
            f"A label is an article, a colour ({', '.join(RANGES)}) and a thing, as in 'a red bird'; got {label!r}."
        )
    return Instance(label, check_box(box, repr(label)), words[0], " ".join(words[1:]))
