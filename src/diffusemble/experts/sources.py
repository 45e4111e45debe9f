"""Where an expert comes from: a diffusers folder, a hub repository, a single file, or the zoo."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from diffusemble.config.places import looked, near
from diffusemble.experts.formats.header import CONVERT, PICKLES, misnamed
from diffusemble.experts.hub import hub_id, is_place, pinned

Kind = Literal["folder", "hub", "file", "zoo"]

INDEX, SPEC = "model_index.json", "ensemble.json"
"""What the folder of a model has, and that of a saved ensemble."""
_PICKLE = (
    f"is a pickle file, and opening one can run any program hidden in it; only .safetensors files are read. {CONVERT}"
)
_ADDED = "a LoRA, LyCORIS, textual inversion or VAE, for example "
_ACCEPTED = 'a diffusers folder, a hub id such as "org/name", a .safetensors file, or "zoo:<name>"'


@dataclass(frozen=True)
class Addition:
    """A file that is put on top of a model: LoRA, LyCORIS, textual inversion or VAE.

    Attributes:
        where: the file; for a VAE also a folder, a hub id or ``"zoo:<name>"``.
        weight: how much of a LoRA is taken.
        role: ``"vae"`` where only the VAE of ``where`` is meant; else what the file is decides.
    """

    where: str
    weight: float = 1.0
    role: Literal["vae"] | None = None

    def __str__(self) -> str:
        """The addition as users write it behind a plus sign."""
        start = "" if self.role is None else f"{self.role}="
        return f"{start}{self.where}" + ("" if self.weight == 1 else f":{self.weight:g}")

    @property
    def name(self) -> str:
        """Short name: that of the file or folder, with the weight."""
        return str(replace(self, where=Path(os.path.abspath(self.where)).name))


@dataclass(frozen=True)
class Source:
    """One model to load.

    Attributes:
        kind: what sort of place it is.
        where: path of the folder or file, hub repository, or name in the zoo.
        revision: branch, tag or commit of a hub repository.
        added: files on top of the model, in order.
    """

    kind: Kind
    where: str
    revision: str | None = None
    added: tuple[Addition, ...] = ()

    def __str__(self) -> str:
        """The source as users write it."""
        start = f"zoo:{self.where}" if self.kind == "zoo" else self.where
        pinned = "" if self.revision is None else f"@{self.revision}"
        return "+".join((start + pinned, *map(str, self.added)))

    @property
    def name(self) -> str:
        """Short name: the last part of the path or repository, without a file's ending, and those of additions."""
        path = Path(os.path.abspath(self.where))
        own = path.stem if self.kind == "file" else path.name
        return "+".join((own, *(Path(one.where).stem for one in self.added if one.role is None)))


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
    """The models behind one string or path: ``model``, or ``model+style.safetensors:0.7+other.safetensors``.

    Raises:
        ValueError: it, or what is added to it, is missing, unknown or of an unsupported type.
    """
    if not isinstance(given, (str, Path)) or not str(given).strip():
        raise ValueError(f"A source of experts is {_ACCEPTED}; got {given!r}.")
    first, added = split_source(str(given))
    return tuple(replace(source, added=added) for source in _models(first if isinstance(given, str) else Path(first)))


def split_source(text: str) -> tuple[str, tuple[Addition, ...]]:
    """A source as users write it, without and with only what is added to it.

    Raises:
        ValueError: something added is missing or of an unsupported type.
    """
    first, *rest = _pieces(text)
    return first, tuple(parse_addition(piece, first) for piece in rest)


def is_file(text: str) -> bool:
    """Whether a source as users write it is a single file, with or without additions."""
    return _pieces(text)[0].endswith(".safetensors")


def parse_additions(text: str, key: str) -> tuple[Addition, ...]:
    """What a configuration's ``key`` adds to every model: ``style.safetensors:0.7``.

    Raises:
        ValueError: see ``parse_addition``.
    """
    return tuple(parse_addition(piece, "MODEL", key) for piece in _pieces(text))


def parse_addition(text: str, model: str, key: str | None = None) -> Addition:
    """An addition to ``model`` as users write it: ``style.safetensors:0.7``, or ``vae=FILE-OR-FOLDER``.

    Args:
        text: what stands behind the plus sign.
        model: what stands before it.
        key: of the configuration, where there is no plus sign.

    Raises:
        ValueError: there is no such file, it is of an unsupported type, or the weight is no number.
    """
    found = re.fullmatch(r"(?P<vae>vae=)?(?P<where>.+?)(?::(?P<weight>[^:/\\]*))?", text)
    if found is None:
        raise ValueError(f"Behind a plus sign comes a file, as in {model}+style.safetensors:0.7; got {text!r}.")
    where, weight, role = found["where"], found["weight"], "vae" if found["vae"] else None
    if role and text.removeprefix("vae=").startswith("zoo:"):
        where, weight = text.removeprefix("vae="), None
    path = Path(where).expanduser()
    if path.suffix != ".safetensors" and path.is_file():
        raise ValueError(f"{where} {misnamed(path)}")
    if path.suffix in PICKLES:
        raise ValueError(f"{where} {_PICKLE}")
    if not (path.is_file() or (role is not None and is_place(where))):
        if key:
            raise ValueError(
                f"{key}: there is no .safetensors file {looked(where)}. Give {_ADDED}style.safetensors:0.7."
            )
        raise ValueError(
            f"There is no .safetensors file {where} to add to {model} (looked in {Path.cwd()}){near(where)}. Behind a "
            f"plus sign comes {_ADDED}{model}+style.safetensors:0.7."
        )
    return Addition(where, _weight(weight, where, model), "vae" if role else None)


def _weight(text: str | None, where: str, model: str) -> float:
    try:
        weight = 1.0 if text is None else float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ValueError(f"The weight of {where} must be a number, as in {model}+{where}:0.7; got {text!r}.")
    return weight


def _pieces(text: str) -> list[str]:
    """``text`` cut at its plus signs, but for those in the names of files that exist."""
    parts, found = text.split("+"), []
    while parts:
        count = next((n for n in range(len(parts), 0, -1) if _exists("+".join(parts[:n]))), 1)
        found.append("+".join(parts[:count]))
        parts = parts[count:]
    return found


def _exists(piece: str) -> bool:
    where = piece.removeprefix("vae=")
    return any(Path(one).expanduser().exists() for one in (where, re.sub(r":[-+]?[\d.]+(?:e[-+]?\d+)?$", "", where)))


def _models(given: str | Path) -> tuple[Source, ...]:
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
    if path.is_file():
        return (_file(path),)
    if path.suffix in PICKLES:
        raise ValueError(f"{text} {_PICKLE}")
    hub = hub_id(text) if isinstance(given, str) else None
    if hub is None:
        raise ValueError(
            f"There is no file or folder {looked(text)}. Check the path; a source is {_ACCEPTED}{pinned(text)}."
        )
    return (Source("hub", *hub),)


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
    if (path / SPEC).is_file():
        raise ValueError(
            f"The folder {path} is a saved ensemble, and an expert is one model. To draw with it, give it in place of "
            f"the experts: --ensemble {path}, in a configuration ensemble: {path}."
        )
    if (path.parent / INDEX).is_file():
        raise ValueError(f"The folder {path} is a part of the model {path.parent}. Give {path.parent} itself.")
    files = sorted(file.name for file in path.glob("*.safetensors"))
    found = (
        f"it holds {', '.join(files[:3])}" if files else "it is empty" if not any(path.iterdir()) else "it holds none"
    )
    hint = f"Give the file {path / files[0]} itself" if files else "Give the folder that save_pretrained wrote"
    raise ValueError(f"The folder {path} is not a diffusers model: that has a {INDEX}, but {found}. {hint}.")


def _file(path: Path) -> Source:
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} {misnamed(path)}")
    return Source("file", str(path))
