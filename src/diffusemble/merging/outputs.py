"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusemble.config.places import check_folder


def check_free(out: Path) -> None:
    """Make sure that a file or folder can be written, and that nothing would be overwritten.

    Raises:
        ValueError: there is something; or see ``check_folder``.
    """
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out} exists already, and nothing is overwritten. Give a name that does not exist yet.")
    check_folder(out.parent, "out", "a file or folder that does not exist yet")


@contextmanager
def complete(out: Path) -> Iterator[Path]:
    """A path beside ``out`` to write a file or a folder to; it gets its name when the block ends well.

    What a killed process was writing for the same name is removed: nobody else may be writing it.

    Raises:
        ValueError: ``out`` exists.
        OSError: the disk is full, or the folder cannot be written; nothing is left behind.
    """
    check_free(out)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for left in out.parent.iterdir():
            if re.fullmatch(rf"\.{re.escape(out.name)}\.\d+\.partial", left.name):
                _remove(left)
        yield temporary
        check_free(out)
        temporary.rename(out)
    except OSError as error:
        raise OSError(
            f"Could not write {out} ({error.strerror or error}); nothing is left of it. Free some space, or choose "
            f"another folder."
        ) from error
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
