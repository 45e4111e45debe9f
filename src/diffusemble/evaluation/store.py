"""Scores on disk: every piece is computed once, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
            _replace(run, lambda file: file.write_text(text + "\n", encoding="utf-8"))

    def get(self, key: str, make: Callable[[], Arrays]) -> Arrays:
        """The arrays under ``key`` (a path like ``"losses/mean/pair-000"``), made and kept if they are not there."""
        file = self.folder / f"{key}.npz"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            made = make()
            _replace(file, lambda temporary: _write(temporary, made))
        with np.load(file, allow_pickle=False) as opened:
            return {name: opened[name] for name in opened.files}


def _write(file: Path, arrays: Arrays) -> None:
    with file.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub forgets the names


def _replace(file: Path, write: Callable[[Path], Any]) -> None:
    # A kill at any moment leaves either no file or the whole file; two processes can share the work.
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    write(temporary)
    os.replace(temporary, file)


def _compare(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for key in {**then, **now}:
        if then.get(key) != now.get(key):
            raise ValueError(
                f"{folder} holds the scores of another run: {key!r} was {then.get(key)!r:.120}, now "
                f"{now.get(key)!r:.120}. Give another folder as out, or delete this one to start again."
            )
