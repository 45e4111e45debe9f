"""The log of a search: one JSON line per trial, so that a killed search goes on without repeating any."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusemble.config.changes import first_change
from diffusemble.merging.coordinates import Shares, Step

FORMAT = 1
Key = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Trial:
    """One set of shares that was tried.

    Attributes:
        step: where in the search.
        scores: of every picture; higher is better.
        score: their mean; minus infinity if one of them is no number.
    """

    step: Step
    scores: tuple[float, ...]
    score: float


class TrialLog:
    """Trials on disk, by their shares.

    Args:
        file: made if it is not there.
        identity: everything the scores depend on; the first line.

    Raises:
        ValueError: the file is the log of another search, or no log.
    """

    def __init__(self, file: Path, identity: Mapping[str, Any]) -> None:
        self.file = file
        self._scores: dict[Key, tuple[float, ...]] = {}
        mine = {"format": FORMAT, "identity": json.loads(json.dumps(dict(identity)))}
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(file) if file.exists() else []
        if not lines:
            self._append(mine)
            return
        _compare(file, lines[0], mine)
        for line in lines[1:]:
            self._scores[_key(line["shares"])] = tuple(math.nan if one is None else one for one in line["scores"])

    def __len__(self) -> int:
        """Number of trials on disk."""
        return len(self._scores)

    def find(self, shares: Shares) -> tuple[float, ...] | None:
        """Scores of a trial that was made before."""
        return self._scores.get(_key(shares))

    def add(self, shares: Shares, step: Step, scores: Sequence[float]) -> None:
        """Write a trial; it is on disk when this returns."""
        self._scores[_key(shares)] = tuple(scores)
        axis = step.axis
        self._append(
            {
                "trial": len(self._scores),
                "pass": step.number,
                "slots": [] if axis is None else list(axis.slots),
                "expert": None if axis is None else axis.expert,
                "value": step.value,
                "score": _written(mean(scores)),
                "scores": [_written(score) for score in scores],
                "shares": {slot: list(own) for slot, own in shares.items()},
            }
        )

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def mean(scores: Sequence[float]) -> float:
    """Mean; minus infinity if a picture has no score, so that broken merges lose."""
    found = math.fsum(scores) / len(scores) if all(math.isfinite(score) for score in scores) else -math.inf
    return found


def _written(score: float) -> float | None:
    return score if math.isfinite(score) else None


def _key(shares: Mapping[str, Sequence[float]]) -> Key:
    return tuple(tuple(own) for own in shares.values())


def _whole_lines(file: Path) -> list[dict[str, Any]]:
    """All lines; a last one that a kill cut off is taken away from the file too."""
    text = file.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        with file.open("r+b") as stream:
            stream.truncate(len(whole))
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no log of a search ({error}). Give another folder as out.") from error


def _compare(file: Path, then: Any, now: Mapping[str, Any]) -> None:
    old = then.get("identity") if isinstance(then, dict) and then.get("format") == FORMAT else None
    if old is None:
        raise ValueError(f"{file} is no log of a search of format {FORMAT}. Give another folder as out.")
    change = first_change(old, now["identity"])
    if change is not None:
        raise ValueError(
            f"{file} is the log of another search: its {change.what} was {change.then}, now {change.now}. Give another "
            f"folder as out, or delete this one to start again."
        )
