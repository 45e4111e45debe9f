"""Pictures that are read, and names for new ones: numbered, and never one that is taken."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import count
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from diffusemble.config.places import check_folder, looked

SLUG_LENGTH = 40


def read_picture(file: str | Path, key: str) -> Image.Image:
    """The picture that a configuration's ``key`` names, in RGB.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    try:
        with Image.open(file) as opened:
            return opened.convert("RGB")
    except FileNotFoundError as error:
        raise ValueError(f"{key}: there is no file {looked(str(file))}. Give the path of a picture.") from error
    except (UnidentifiedImageError, IsADirectoryError) as error:
        raise ValueError(f"{key}: this is no picture: {file}. Give the path of a picture.") from error
    except (OSError, SyntaxError) as error:  # the latter of broken PNG files
        raise ValueError(f"{key}: the picture {file} cannot be read ({error}). Copy or download it again.") from error


def check_out(out: str | Path) -> None:
    """Make sure, before anything is drawn, that pictures can be written where ``free_stem`` will.

    Raises:
        ValueError: they cannot; see ``check_folder``.
    """
    check_folder(_folder(Path(out)), "out", "a folder or NAME.png")


def free_stem(out: Path, title: str, suffixes: Iterable[str]) -> Path:
    """Where a run can write ``<stem><suffix>`` for all suffixes; makes the folder.

    Args:
        out: a folder, which gives ``<out>/0001-<title>``, ``<out>/0002-<title>``, ...; or a file name ending with
            ``.png``, which gives itself, then ``<name>-2``, ``<name>-3``, ...
        title: words for the name.
        suffixes: ``".png"``, ``"-compare.png"``, ...
    """
    suffixes = list(suffixes)
    folder = _folder(out)
    if folder != out:
        base = out.stem
        names = (base if number == 1 else f"{base}-{number}" for number in count(1))
    else:
        taken = [int(found[1]) for file in _listed(out) if (found := re.match(r"(\d{4,})-", file))]
        names = (f"{number:04d}-{slug(title)}" for number in count(max(taken, default=0) + 1))
    folder.mkdir(parents=True, exist_ok=True)
    return next(
        folder / name for name in names if not any((folder / f"{name}{suffix}").exists() for suffix in suffixes)
    )


def _folder(out: Path) -> Path:
    return out.parent if out.suffix.lower() == ".png" else out


def slug(title: str) -> str:
    """Letters and digits of any language, joined by hyphens."""
    words = re.findall(r"\w+", title.lower())
    return "-".join(words)[:SLUG_LENGTH].strip("-") or "picture"


def _listed(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()] if folder.is_dir() else []
