"""Several models become one: find them → check that they fit → merge tensor by tensor → write with the recipe.

However many models there are, memory holds a few tensors at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffusemble
from diffusemble.experts.sources import INDEX, parse_source, parse_sources
from diffusemble.merging.config import MergeConfig
from diffusemble.merging.methods import Method
from diffusemble.merging.models import WHOLE, Model, check_ending, check_layouts, find
from diffusemble.merging.outputs import check_free, complete
from diffusemble.merging.streams import Amounts, Part, amounts_of, open_parts
from diffusemble.merging.tensor_files import Form, write_tensors
from diffusemble.registry import MERGES, lookup
from diffusemble.settings import load_config

HEADER_KEY = "diffusemble.merge"
"""Where a merged file's header has its record; a merged folder has the file ``RECORD``."""
RECORD = "merge.json"
_DESCRIPTIVE = {"format", "modelspec.architecture", "modelspec.prediction_type", "modelspec.resolution"}
_WEIGHTS = {".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx"}

Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Merged:
    """What came out.

    Attributes:
        out: the file or folder.
        experts: the sources of the experts.
        parts: which parts of the pipeline were merged; ``("",)`` for a file. The others are the first expert's.
        tensors: how many tensors these have.
    """

    out: Path
    experts: tuple[str, ...]
    parts: tuple[str, ...]
    tensors: int


def merge(config: MergeConfig, tell: Tell = lambda share, what: None) -> Merged:
    """Merge models into one file or folder.

    Args:
        config: what to merge, and how.
        tell: is told the share that is done, and what is being done.

    Raises:
        ValueError: the models do not fit together or to the method, or something exists at ``config.out``.
        OSError: the disk is full; nothing is left behind.
    """
    out = Path(config.out).expanduser()
    check_free(out)
    sources = parse_sources(config.experts)
    method = build_method(config, len(sources))
    experts = [find(source) for source in sources]
    models = experts if config.base is None else [*experts, _base(config.base)]
    check_layouts(models)
    check_ending(out, experts[0], "the key out, or --out")
    parts = open_parts(models, len(experts))
    amounts = amounts_of(method, config.blocks, parts)
    checksums = [_hash(model, tell) for model in models]
    chosen = [part for part in parts if config.dtype != "keep" or _differs(part.name, models, checksums)]
    tell(0.0, "comparing")
    method = method.prepare(tensors for part in chosen for tensors in part.fractions())
    record = _record(config, models, checksums)
    with complete(out) as temporary:
        job = _Job(method, amounts, config.dtype, tell, sum(part.size for part in chosen))
        if experts[0].is_file:
            job.write_file(parts[0], temporary, record)
        else:
            _copy_rest(experts[0], {part.name for part in chosen}, temporary)
            for part in chosen:
                job.write_part(part, experts[0], temporary)
            (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    names = tuple(model.name for model in experts)
    return Merged(out, names, tuple(part.name for part in chosen), sum(len(part.experts[0].forms) for part in chosen))


def build_method(config: MergeConfig, count: int) -> Method:
    """The method of a configuration, for ``count`` experts.

    Raises:
        ValueError: it has no such option, takes another number of experts, or needs a base or takes none.
    """
    cls: type[Method] = lookup(MERGES, config.method, "method")
    try:
        options = load_config(cls.Options, **config.options)
    except ValueError as error:
        raise ValueError(f"options of the method {config.method!r}: {error}") from error
    if cls.needs_base and config.base is None:
        raise ValueError(
            f"The method {config.method!r} takes differences from a base model; none was given. Give the model that "
            f"the experts were fine-tuned from: --base MODEL."
        )
    if config.base is not None and not cls.needs_base:
        raise ValueError(f"The method {config.method!r} uses no base model; got {config.base!r}. Leave base out.")
    return cls(options, count)


class _Job:
    """Writes merged parts and tells how far it is."""

    def __init__(self, method: Method, amounts: Amounts, dtype: str, tell: Tell, size: int) -> None:
        self.method, self.amounts, self.tell, self.size = method, amounts, tell, size
        self.dtype = None if dtype == "keep" else getattr(torch, dtype)
        self.done = 0

    def write_file(self, part: Part, file: Path, record: Mapping[str, Any]) -> None:
        """One file of all models, with the record in its header."""
        first = part.experts[0]
        metadata = {key: text for key, text in first.files[0].metadata.items() if key in _DESCRIPTIVE}
        self._write(part, first.forms, file, {"format": "pt", **metadata, HEADER_KEY: json.dumps(record)})

    def write_part(self, part: Part, first: Model, folder: Path) -> None:
        """The files of one part in a folder, as many as the first expert has."""
        for file in part.experts[0].files:
            self._write(part, file.forms, folder / first.name_of(file.path), {"format": "pt", **file.metadata})

    def _write(self, part: Part, forms: Mapping[str, Form], file: Path, metadata: Mapping[str, str]) -> None:
        own = {key: self._form(form) for key, form in forms.items()}
        write_tensors(file, own, lambda key: self._merge(part, key, own[key]), metadata)

    def _form(self, form: Form) -> Form:
        return Form(self.dtype or form.dtype, form.shape) if form.dtype.is_floating_point else form

    def _merge(self, part: Part, key: str, form: Form) -> Tensor:
        self.tell(self.done / max(self.size, 1), f"merging {part.name}".strip())
        self.done += part.experts[0].forms[key].size
        if not form.dtype.is_floating_point:
            return part.experts[0].read(key)
        exact = self.method.merge(part.tensors(key), self.amounts(part.full(key)))
        merged = exact.to(form.dtype)
        if not merged.float().isfinite().all() and exact.isfinite().all():
            raise ValueError(
                f"{part.full(key)!r} has values up to {float(exact.abs().max()):.3g} after merging, which {form.dtype} "
                f"cannot hold. Choose a wider type: dtype=bfloat16 or dtype=float32."
            )
        return merged


def _base(given: str) -> Model:
    sources = parse_source(given)
    if len(sources) > 1:
        raise ValueError(f"base is one model; {given!r} is {len(sources)}. Give the one that the experts come from.")
    return find(sources[0])


def _hash(model: Model, tell: Tell) -> dict[str, str]:
    tell(0.0, f"reading {model.name}")
    return model.checksums()


def _differs(part: str, models: Sequence[Model], checksums: Sequence[Mapping[str, str]]) -> bool:
    pairs = zip(models, checksums, strict=True)
    files = {tuple(own[model.name_of(file)] for file in model.parts[part]) for model, own in pairs}
    return part == WHOLE or len(files) > 1


def _record(config: MergeConfig, models: Sequence[Model], checksums: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    count = len(models) - (config.base is not None)
    return {
        "diffusemble": diffusemble.__version__,
        "recipe": config.model_dump(mode="json", exclude={"out"}),
        "inputs": [
            {"role": "expert" if place < count else "base", "source": model.name, "sha256": dict(own)}
            for place, (model, own) in enumerate(zip(models, checksums, strict=True))
        ],
    }


def _copy_rest(first: Model, merged: Collection[str], folder: Path) -> None:
    """Everything of the first expert's folder but weights that are merged, or lie beside its parts."""
    index = json.loads((first.place / INDEX).read_text(encoding="utf-8"))
    folder.mkdir()
    for entry in sorted(first.place.iterdir()):
        if entry.is_dir() and entry.name in merged:
            whole = len(first.parts[entry.name]) == 1
            shutil.copytree(
                entry, folder / entry.name, ignore=lambda _, names, w=whole: [n for n in names if _old(n, w)]
            )
        elif entry.is_dir() and entry.name in index:
            shutil.copytree(entry, folder / entry.name)
        elif entry.is_file() and entry.suffix not in _WEIGHTS:
            shutil.copy2(entry, folder / entry.name)


def _old(name: str, whole: bool) -> bool:
    """Whether a file in a merged part is about the first expert's own weights."""
    return Path(name).suffix in _WEIGHTS or (whole and ".index." in name)
