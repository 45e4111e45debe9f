"""Places that a configuration names: what is said of one that is missing, and whether a run can write to it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from diffusemble.config.schema import nearest


def near(where: str) -> str:
    """A hint for error messages: what lies where a path leads nowhere, and is called nearly so; or nothing."""
    path = Path(where).expanduser()
    while not path.parent.is_dir():
        path = path.parent
    names = sorted(one.name for one in path.parent.iterdir() if one.name != path.name)
    same = [name for name in names if Path(name).stem == path.name]  # its ending was left out
    return f" (did you mean {same[0]!r}?)" if same else nearest(path.name, names)


def looked(where: str) -> str:
    """Behind the name of something that is missing: where it was looked for, and what lies there."""
    return f"{where} (looked in {Path.cwd()}){near(where)}"


def check_folder(folder: str | Path, key: str, rule: str = "a folder") -> None:
    """Make sure, before hours of work, that files can be written to a folder, which may be there or not.

    Args:
        folder: it stays as it is; one that is not there is not made.
        key: of the configuration.
        rule: what the key names.

    Raises:
        ValueError: it is a file or would lie in one, or nothing can be written there.
    """
    place = Path(folder)
    there = next(one for one in (place, *place.parents) if os.path.lexists(one))
    if not there.is_dir():
        what = "is no folder" if there == place else f"cannot be made, for {there} is no folder"
        raise ValueError(f"{key} is {rule}; {place} {what}. Give another name.")
    try:
        with tempfile.TemporaryFile(dir=there):  # what permissions say is not the whole truth
            pass
    except OSError as error:
        raise ValueError(
            f"{key} is {rule}, and nothing can be written to {there} ({error.strerror or error}). Give another folder, "
            f"or free this one."
        ) from error


def check_file(file: str | Path, key: str) -> None:
    """Make sure, before hours of work, that a file can be written, be it there or not.

    Raises:
        ValueError: it is a folder, or see ``check_folder``.
    """
    if Path(file).is_dir():
        raise ValueError(f"{key} is a file; {file} is a folder. Give another name.")
    check_folder(Path(file).parent, key, "a file")
