"""The log of a run: one JSON object per line, and TensorBoard's event files on request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusemble.training.files import StorageError, replace_file

FILE = "log.jsonl"


class RunLog:
    """Appends rows; opening it at ``step`` removes the rows a killed run wrote beyond its checkpoint.

    Args:
        folder: of the run.
        step: rows after this step are removed.
        tensorboard: also write event files.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool = False) -> None:
        self._file = folder / FILE
        if self._file.is_file():
            kept = [row for row in read_log(folder) if row["step"] <= step] if step else []
            replace_file(self._file, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._board = _board(folder, step) if tensorboard else None

    def write(self, step: int, **values: Any) -> None:
        """Append one row.

        Raises:
            StorageError: it could not be written.
        """
        try:
            with self._file.open("a", encoding="utf-8") as opened:
                opened.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise StorageError(
                f"Could not write {self._file} at step {step}: {error.strerror or error}. The last checkpoint is "
                f"untouched. Free some space and run the same command again."
            ) from error
        if self._board is not None:
            for name, value in values.items():
                numbers = enumerate(value) if isinstance(value, list) else [(None, value)]
                for place, number in numbers:
                    if isinstance(number, int | float):
                        self._board.add_scalar(name if place is None else f"{name}/{place}", number, step)

    def close(self) -> None:
        """Finish the event files."""
        if self._board is not None:
            self._board.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Rows of a run's log; a last line that a kill cut short is left out."""
    rows = []
    for line in (folder / FILE).read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "tensorboard=true needs the package tensorboard, which is not installed. Install diffusemble[train], or "
            "set tensorboard=false."
        ) from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
