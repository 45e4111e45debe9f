"""Names for new pictures: numbered, and never one that is taken."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import count
from pathlib import Path

SLUG_LENGTH = 40


def free_stem(out: Path, title: str, suffixes: Iterable[str]) -> Path:
    """Where a run can write ``<stem><suffix>`` for all suffixes; makes the folder.

    Args:
        out: a folder, which gives ``<out>/0001-<title>``, ``<out>/0002-<title>``, ...; or a file name ending with
            ``.png``, which gives itself, then ``<name>-2``, ``<name>-3``, ...
        title: words for the name.
        suffixes: ``".png"``, ``"-compare.png"``, ...
    """
    suffixes = list(suffixes)
    if out.suffix.lower() == ".png":
        folder, base = out.parent, out.stem
        names = (base if number == 1 else f"{base}-{number}" for number in count(1))
    else:
        folder = out
        taken = [int(found[1]) for file in _listed(out) if (found := re.match(r"(\d{4,})-", file))]
        names = (f"{number:04d}-{slug(title)}" for number in count(max(taken, default=0) + 1))
    folder.mkdir(parents=True, exist_ok=True)
    return next(
        folder / name for name in names if not any((folder / f"{name}{suffix}").exists() for suffix in suffixes)
    )


def slug(title: str) -> str:
    """Letters and digits of any language, joined by hyphens."""
    words = re.findall(r"\w+", title.lower())
    return "-".join(words)[:SLUG_LENGTH].strip("-") or "picture"


def _listed(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()] if folder.is_dir() else []
