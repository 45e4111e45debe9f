"""A picture that training reads, and a data set of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT_COLUMNS = ("text", "caption", "prompt")
SCORE_COLUMN = "aesthetic_score"


@dataclass(frozen=True)
class Picture:
    """One captioned picture that is not read yet.

    Attributes:
        name: what messages call it.
        caption: its text.
        read: gives the bytes of its file.
        score: how beautiful it is, from 1 to 10; NaN where nobody has said.
    """

    name: str
    caption: str
    read: Callable[[], bytes]
    score: float = math.nan


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        stamp: text that changes when the data change (names, captions, sizes, times of change).
        pictures: starts a new pass over all pictures, always in the same order.
        total: their number, where it is known before reading.
    """

    stamp: str
    pictures: Callable[[], Iterator[Picture]]
    total: int | None = None


def score_of(row: Mapping[str, Any], column: str | None, where: object) -> float:
    """The aesthetic score in ``column`` of a row; NaN where it has none and no column was named.

    Raises:
        ValueError: it is no number.
    """
    said = row.get(column or SCORE_COLUMN)
    if said in (None, "") and column is None:
        return math.nan
    try:
        return float(said)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: an aesthetic score is a number from 1 to 10, but {column or SCORE_COLUMN!r} says {said!r}. "
            f"Correct it, or name another column in data.score_column."
        ) from error


def stamp_of(file: Path) -> tuple[int, int]:
    """Size and time of change of a file, to notice that it is another one."""
    try:
        status = file.stat()
    except OSError:
        return (0, 0)  # a missing file is skipped, and named, when it is read
    return status.st_size, status.st_mtime_ns
