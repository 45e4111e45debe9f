"""Scores on disk: every piece is computed once, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusemble.config.changes import first_change

Arrays = dict[str, NDArray[Any]]
RUN_FILE = "run.json"


class Store:
    """A folder of named arrays that all belong to one run.

    Args:
        folder: made if it is not there.
        identity: everything the numbers depend on; written to ``run.json``.
        notes: what else should stand there, such as versions and the machine.

    Raises:
        ValueError: the folder holds the scores of a run with another identity.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        mine = json.loads(json.dumps(dict(identity)))
        run = folder / RUN_FILE
        if run.exists():
            _compare(folder, json.loads(run.read_text(encoding="utf-8"))["identity"], mine)
        else:
            text = json.dumps({"identity": mine, "notes": dict(notes)}, indent=1)
            replace_file(run, lambda file: file.write_text(text + "\n", encoding="utf-8"))

    def get(self, key: str, make: Callable[[], Arrays]) -> Arrays:
        """The arrays under ``key`` (a path like ``"losses/mean/pair-000"``), made and kept if they are not there."""
        file = self.folder / f"{key}.npz"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            made = make()
            replace_file(file, lambda temporary: _write(temporary, made))
        return _read(file)

    def has(self, key: str) -> bool:
        """Whether there are arrays under ``key``."""
        return (self.folder / f"{key}.npz").exists()

    def read(self, key: str) -> Arrays:
        """The arrays under ``key``.

        Raises:
            ValueError: they were not made yet.
        """
        if not self.has(key):
            raise ValueError(
                f"{self.folder} does not hold {key} yet. Run `diffusemble evaluate` again with out={self.folder}: it "
                f"goes on where it stopped."
            )
        return _read(self.folder / f"{key}.npz")

    def joined(self, key: str) -> Arrays:
        """The pieces ``key-00000``, ``key-00057``, ... in order, as far as they are there."""
        parts: list[Arrays] = []
        held = 0
        for start, file in self._pieces(key):
            if start == held:  # a gap ends what is there
                parts.append(_read(file))
                held += max(len(array) for array in parts[-1].values())
        return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else {})}

    def rows(self, key: str) -> int:
        """How many rows ``joined`` has."""
        return max((len(array) for array in self.joined(key).values()), default=0)

    def join(self, key: str, count: int) -> Arrays:
        """The same, as far as ``count`` rows.

        Raises:
            ValueError: they do not reach ``count`` rows.
        """
        found = self.joined(key)
        held = max((len(array) for array in found.values()), default=0)
        if held < count or not found:
            raise ValueError(
                f"{self.folder} holds {held} of the {count} rows of {key}. Run `diffusemble evaluate` again with "
                f"out={self.folder}: it goes on where it stopped."
            )
        return {name: array[:count] for name, array in found.items()}

    def _pieces(self, key: str) -> list[tuple[int, Path]]:
        pattern = re.compile(re.escape(Path(key).name) + r"-(\d{5,})\.npz")
        files = (self.folder / key).parent.glob("*.npz")
        return sorted((int(match[1]), file) for file in files if (match := pattern.fullmatch(file.name)))

    def note(self, key: str, values: Mapping[str, Any], fixed: Mapping[str, Any] | None = None) -> None:
        """Keep ``values`` as JSON under ``key``; ``fixed`` beside them must stay what it was.

        Raises:
            ValueError: ``fixed`` was something else.
        """
        file, mine = self.folder / f"{key}.json", json.loads(json.dumps(dict(fixed or {})))
        if file.exists():
            then = json.loads(file.read_text(encoding="utf-8")).get("fixed", {})
            _compare(file, then, mine)
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**values, "fixed": mine}, indent=1)
        replace_file(file, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))

    def noted(self, key: str) -> dict[str, Any]:
        """What ``note`` kept.

        Raises:
            ValueError: nothing was kept.
        """
        file = self.folder / f"{key}.json"
        if not file.is_file():
            raise ValueError(
                f"{self.folder} holds no finished evaluation: there is no {file.name}. Give the folder that "
                f"`diffusemble evaluate` was given as out."
            )
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def names(self, folder: str) -> tuple[str, ...]:
        """What ``note`` kept in a folder, by name."""
        return tuple(sorted(file.stem for file in (self.folder / folder).glob("*.json")))


def stored(folder: Path) -> Store:
    """The scores in a folder as they are, to read them.

    Raises:
        ValueError: the folder holds none.
    """
    run = folder / RUN_FILE
    if not run.is_file():
        raise ValueError(
            f"{folder} holds no scores: there is no {RUN_FILE}. Give the folder that `diffusemble evaluate` was given "
            f"as out."
        )
    return Store(folder, json.loads(run.read_text(encoding="utf-8"))["identity"], {})


def _read(file: Path) -> Arrays:
    with np.load(file, allow_pickle=False) as opened:
        return {name: opened[name] for name in opened.files}


def _write(file: Path, arrays: Arrays) -> None:
    with file.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub forgets the names


def replace_file(file: Path, write: Callable[[Path], Any]) -> None:
    """Have ``write`` make the file under another name beside it, then put it in its place."""
    # A kill at any moment leaves either no file or the whole file; two processes can share the work.
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    write(temporary)
    os.replace(temporary, file)


def _compare(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    change = first_change(then, now)
    if change is not None:
        raise ValueError(
            f"{folder} holds the scores of another run: its {change.what} was {change.then}, now {change.now}. Give "
            f"another folder as out, or delete this one to start again."
        )
