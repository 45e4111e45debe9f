"""What a text means that may name a folder here or a repository on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from diffusemble.config.places import looked

_ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")


def hub_id(text: str) -> tuple[str, str | None] | None:
    """Repository and revision; None where a folder of its first name is here, which must be what is meant."""
    found = None if text.endswith(".safetensors") else _ID.fullmatch(text)
    if found is None or (found["revision"] is None and Path(text).parent.is_dir()):
        return None
    return found["repository"], found["revision"]


def is_hub_id(text: str) -> bool:
    """Whether a text is the id of a hub repository and nothing that lies, or should lie, here."""
    return hub_id(text) is not None and not Path(text).exists()


def is_place(text: str) -> bool:
    """Whether something lies here, or may lie on the hub or in the zoo."""
    return Path(text).expanduser().exists() or text.startswith("zoo:") or is_hub_id(text)


def pinned(text: str) -> str:
    """A hint for error messages: how a repository is written whose name leads to a folder here; or nothing."""
    return "" if _ID.fullmatch(text) is None else f" (a hub repository of this name: {text}@main)"


def parse_part(text: str, key: str) -> tuple[str, str | None]:
    """Where a part lies that a configuration's ``key`` names: its folder, or hub repository with revision.

    Raises:
        ValueError: it is neither.
    """
    if Path(text).is_dir():
        return text, None
    found = hub_id(text)
    if found is None or Path(text).exists():
        what = f"{text} is no folder" if Path(text).exists() else f"there is no folder {looked(text)}"
        raise ValueError(
            f"{key}: {what}. Give a folder or hub id with config.json and .safetensors weights{pinned(text)}."
        )
    return found
