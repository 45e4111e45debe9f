"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class StorageError(OSError):
    """A file could not be written; what was there before is untouched."""


def replace_file(file: Path, data: bytes) -> None:
    """Write ``data`` to ``file`` so that a kill or a power cut leaves either the old content or the new.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.partial")  # two runs may fill one cache
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        sync(temporary)
        os.replace(temporary, file)
        sync(file.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StorageError(
            f"Could not write {file} ({len(data) / 2**20:.1f} MiB): {error.strerror or error}. What was there before "
            f"is untouched. Free some space or choose another folder, and run the same command again: it goes on from "
            f"the last checkpoint."
        ) from error


def remove_partial(folder: Path) -> None:
    """Remove what a killed process was writing in ``folder``; nobody else may be writing there."""
    for left in folder.glob(".*.partial"):
        left.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, written to the disk itself."""
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened, and a file only for writing
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
