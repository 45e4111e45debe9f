"""The models of a merge: which files hold their tensors, and whether they fit together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusemble.experts.checksums import DENOISERS, WEIGHTS, read_index, sha256, weight_files
from diffusemble.experts.expert import FREE_CONFIG
from diffusemble.experts.folder import locate, refuse_added
from diffusemble.experts.formats.contents import ADAPTERS, contents_of
from diffusemble.experts.formats.header import read_header
from diffusemble.experts.sources import Source
from diffusemble.merging.tensor_files import Form, TensorFile

WHOLE = ""
"""The one part of a model that is a single file."""


class Weights:
    """The tensors of one part of a model, in one or several files.

    Attributes:
        files: in the order of the model's index.
        forms: number type and shape of every tensor.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(TensorFile(file) for file in files)
        self._holder = {key: file for file in self.files for key in file.forms}
        self.forms: Mapping[str, Form] = {key: file.forms[key] for key, file in self._holder.items()}

    def read(self, key: str) -> Tensor:
        """One tensor, as it is in the file."""
        return self._holder[key].read(key)


@dataclass(frozen=True)
class Model:
    """One model of a merge.

    Attributes:
        name: the source, as users write it.
        place: the file, or the local folder.
        parts: files by part of the pipeline; for a single file, the one part ``WHOLE``.
    """

    name: str
    place: Path
    parts: Mapping[str, tuple[Path, ...]]

    @property
    def is_file(self) -> bool:
        """Whether it is one file."""
        return WHOLE in self.parts

    def checksums(self) -> dict[str, str]:
        """SHA-256 of every file, by path relative to a folder."""
        return {self.name_of(file): sha256(file) for files in self.parts.values() for file in files}

    def name_of(self, file: Path) -> str:
        """Path of one of its files as a text, relative to the folder."""
        return WEIGHTS if self.is_file else file.relative_to(self.place).as_posix()


def find(source: Source) -> Model:
    """The model of a source; one on the hub is downloaded.

    Raises:
        ValueError: it cannot be reached, has no safetensors files, or is a LoRA or LyCORIS.
    """
    refuse_added(source)
    if source.kind == "file":
        file = Path(source.where).expanduser()
        _refuse_adapter(file)
        return Model(str(source), file, {WHOLE: (file,)})
    folder, pinned = locate(source)
    parts = {part: tuple(files) for part, files in weight_files(folder, read_index(folder)).items()}
    return Model(str(pinned), folder, parts)


def check_ending(out: Path, first: Model, key: str) -> None:
    """Make sure that a result is named as the file or the folder that it will be.

    Args:
        out: its name.
        first: the first expert, whose layout it has.
        key: what users name it with.

    Raises:
        ValueError: it is not.
    """
    if first.is_file != (out.suffix == ".safetensors"):
        wanted = "a file, NAME.safetensors" if first.is_file else "a folder, without an ending"
        raise ValueError(
            f"The result has the layout of the first expert {first.name}: {wanted}; got {out}. Name it accordingly "
            f"with {key}: {out.with_suffix('.safetensors' if first.is_file else '')}."
        )


def check_layouts(models: Sequence[Model]) -> None:
    """Make sure that all are files or all are folders, of one architecture and one kind of prediction.

    Raises:
        ValueError: names the model, what it has, and what the first one has.
    """
    first = models[0]
    for model in models[1:]:
        if model.is_file != first.is_file:
            kinds = [f"{one.name} is a {'file' if one.is_file else 'folder'}" for one in (first, model)]
            raise ValueError(
                f"Merged models have one layout, but {' and '.join(kinds)}. Give only folders or only files: "
                f"diffusers' from_single_file and save_pretrained make a folder of a file."
            )
        for part in sorted(first.parts.keys() ^ model.parts.keys()):
            has, lacks = (first, model) if part in first.parts else (model, first)
            raise ValueError(
                f"Merged models have the same parts, but {has.name} has a {part} and {lacks.name} has none. Use models "
                f"of one architecture."
            )
        for (what, mine), (_, other) in zip(_properties(model), _properties(first), strict=True):
            for key in sorted(mine.keys() & other.keys()):
                if mine[key] != other[key]:
                    raise ValueError(
                        f"Merged models have one architecture, but {key} of the {what} is {mine[key]!r} in "
                        f"{model.name} and {other[key]!r} in {first.name}. Use models fine-tuned from one base model."
                    )


def check_tensors(names: Sequence[str], weights: Sequence[Weights], part: str) -> None:
    """Make sure that all have the tensors of the first, in the same shapes, and no others.

    Args:
        names: of the models, the first one first.
        weights: theirs.
        part: what of the models they are.

    Raises:
        ValueError: names the model, the tensor, and the shapes.
    """
    first, where = weights[0].forms, f" of the {part}" if part else ""
    for name, other in zip(names[1:], weights[1:], strict=True):
        for key in (*first, *other.forms):
            if key in first and key in other.forms:
                continue
            mine, lacks, form = (names[0], name, first[key]) if key in first else (name, names[0], other.forms[key])
            count = len(first.keys() ^ other.forms.keys())
            raise ValueError(
                f"Merged models have the same tensors, but {lacks} lacks {key!r}{where}, which has the shape "
                f"{form.shape} in {mine}{f' (and {count - 1} more differ)' if count > 1 else ''}. "
                + ("" if part else _kinds((names[0], weights[0]), (name, other)))
                + "Use full models of one architecture, saved the same way (all with or all without VAE and text "
                "encoder)."
            )
        for key, form in first.items():
            if other.forms[key].shape != form.shape:
                raise ValueError(
                    f"Merged models have the same shapes, but {key!r}{where} is {other.forms[key].shape} in {name} and "
                    f"{form.shape} in {names[0]}. Use models fine-tuned from one base model."
                )


def _refuse_adapter(file: Path) -> None:
    contents = contents_of(read_header(file))
    if contents.kind in ADAPTERS:
        raise ValueError(
            f"{file} is {contents}, which goes on top of a model and is none to merge. Leave it out and load what was "
            f"merged with it (merged.safetensors+{file.name}), or merge a folder of a model that it was saved into "
            f"(docs/merging.md)."
        )


def _kinds(*pair: tuple[str, Weights]) -> str:
    """What two files are, where that tells why their tensors differ."""
    said = []
    for name, weights in pair:
        contents = contents_of(read_header(weights.files[0].path))
        layout = f" in the {contents.layout} layout" if contents.layout else ""
        said.append((name, f"{contents}{layout}" if contents.kind != "unknown" else "no model that is known here"))
    (one, mine), (other, theirs) = said
    return "" if mine == theirs else f"{one} is {mine}, {other} is {theirs}. "


def _properties(model: Model) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the configurations in a folder say that two models must share to be merged."""
    for part in DENOISERS:
        if part in model.parts:
            config = _read(model.place / part / "config.json")
            yield part, {key: value for key, value in config.items() if key[0] != "_" and key not in FREE_CONFIG}
    if not model.is_file:
        scheduler = _read(model.place / "scheduler/scheduler_config.json")
        yield "scheduler", {key: scheduler[key] for key in ("prediction_type",) if key in scheduler}


def _read(file: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{file} is not readable JSON ({error}). Copy or download the folder again.") from error
    return config
