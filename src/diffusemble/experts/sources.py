"""Where an expert comes from: a diffusers folder, a hub repository, a single file, or the zoo."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["folder", "hub", "file", "zoo"]

INDEX = "model_index.json"
_HUB_ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
_ACCEPTED = 'a diffusers folder, a hub id such as "org/name", a .safetensors file, or "zoo:<name>"'


@dataclass(frozen=True)
class Source:
    """One model to load.

    Attributes:
        kind: what sort of place it is.
        where: path of the folder or file, hub repository, or name in the zoo.
        revision: branch, tag or commit of a hub repository.
    """

    kind: Kind
    where: str
    revision: str | None = None

    def __str__(self) -> str:
        """The source as users write it."""
        if self.kind == "zoo":
            return f"zoo:{self.where}"
        return self.where if self.revision is None else f"{self.where}@{self.revision}"

    @property
    def name(self) -> str:
        """Short name: the last part of the path or repository, without a file's ending."""
        path = Path(os.path.abspath(self.where))
        return path.stem if self.kind == "file" else path.name


def parse_sources(given: str | Path | Sequence[str | Path]) -> tuple[Source, ...]:
    """What ``load_experts`` takes, one ``Source`` per model: groups of the zoo are expanded.

    Raises:
        ValueError: nothing was given, or a source is missing, unknown or of an unsupported type.
    """
    listed = [given] if isinstance(given, (str, Path)) else list(given)
    if not listed:
        raise ValueError(f"load_experts needs at least one source; got none. Each is {_ACCEPTED}.")
    return tuple(source for one in listed for source in parse_source(one))


def parse_source(given: str | Path) -> tuple[Source, ...]:
    """The models behind one string or path.

    Raises:
        ValueError: it is missing, unknown or of an unsupported type.
    """
    if not isinstance(given, (str, Path)) or not str(given).strip():
        raise ValueError(f"A source of experts is {_ACCEPTED}; got {given!r}.")
    text = str(given)
    if text.startswith("zoo:"):
        return _from_zoo(text.removeprefix("zoo:"))
    if "://" in text:
        raise ValueError(
            f"{text} is a web address, but a source is {_ACCEPTED}. Give the repository's id, or download the file."
        )
    path = Path(text).expanduser()
    if path.is_dir():
        return (_folder(path),)
    if path.suffix in _PICKLES:
        raise ValueError(
            f"{text} is a pickle file, and opening one can run any program hidden in it; only .safetensors files are "
            f"read. Look for the .safetensors version of this model, or convert the file in a place you can throw away."
        )
    if path.is_file():
        return (_file(path),)
    hub = _HUB_ID.fullmatch(text) if isinstance(given, str) and path.suffix != ".safetensors" else None
    if hub is None:
        raise ValueError(
            f"There is no file or folder {text} (looked in {Path.cwd()}). Check the path; a source is {_ACCEPTED}."
        )
    return (Source("hub", hub["repository"], hub["revision"]),)


def _from_zoo(name: str) -> tuple[Source, ...]:
    from diffusemble import zoo

    groups = zoo.groups()
    if name in groups:
        return tuple(Source("zoo", member) for member in groups[name])
    if name not in (*zoo.names(), zoo.SCENES):
        raise ValueError(
            f"The zoo has no model or group {name!r}. Its groups are: {', '.join(groups)}; its models are: "
            f"{', '.join(zoo.names())}."
        )
    return (Source("zoo", name),)


def _folder(path: Path) -> Source:
    if (path / INDEX).is_file():
        return Source("folder", str(path))
    files = sorted(file.name for file in path.glob("*.safetensors"))
    found = (
        f"it holds {', '.join(files[:3])}" if files else "it is empty" if not any(path.iterdir()) else "it holds none"
    )
    hint = f"Give the file {path / files[0]} itself" if files else "Give the folder that save_pretrained wrote"
    raise ValueError(f"The folder {path} is not a diffusers model: that has a {INDEX}, but {found}. {hint}.")


def _file(path: Path) -> Source:
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is a {path.suffix or 'nameless'} file, but a source is {_ACCEPTED}.")
    return Source("file", str(path))
