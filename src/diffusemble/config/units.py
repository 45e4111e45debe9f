"""Bytes as people write them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_bytes(text: str) -> int:
    """``"8GB"`` or ``"7.5 GiB"`` in bytes.

    Raises:
        ValueError: no positive number with one of the units.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", text.strip()) if isinstance(text, str) else None
    if found is None or found[2] not in UNITS or float(found[1]) <= 0:
        raise ValueError(
            f"a size of memory is a number with one of the units {', '.join(UNITS)}, such as 8GB or 7.5GiB; got "
            f"{text!r}"
        )
    return round(float(found[1]) * UNITS[found[2]])


def _readable(text: str) -> str:
    parse_bytes(text)
    return text


MemorySize = Annotated[str, AfterValidator(_readable)]
"""A size of memory in a configuration."""


def format_bytes(size: int, up: bool = False) -> str:
    """``size`` bytes, in the largest decimal unit that leaves a number of at least 1; rounded, or rounded ``up``."""
    for unit in ("GB", "MB", "kB"):
        if size >= UNITS[unit]:
            shown = -(-100 * size // UNITS[unit]) / 100 if up else size / UNITS[unit]
            return f"{shown:.2f} {unit}"
    return f"{size} bytes"
