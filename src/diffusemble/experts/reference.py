"""An ensemble on disk: the aggregator, and where its experts are with what they must contain."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffusemble.aggregators.base import Combiner
from diffusemble.aggregators.storage import load_aggregator, save_aggregator
from diffusemble.experts.adapters import adapter_files, load_adapter, save_adapter
from diffusemble.experts.checksums import read_json
from diffusemble.experts.expert import Expert
from diffusemble.experts.load import Request, open_experts
from diffusemble.experts.sources import SPEC, Addition, Source, parse_addition, parse_source, split_source

WEIGHTS_FILE = "aggregator.safetensors"
FORMAT = 1
WITH_ADAPTERS = 2  # a version that does not know adapters must not draw without them
WITH_ADDITIONS = 3  # nor without what was added to an expert


def save_ensemble(folder: str | Path, experts: Sequence[Expert], aggregator: Combiner) -> None:
    """Write ``ensemble.json`` and ``aggregator.safetensors`` to ``folder``, and the adapters of distilled experts.

    Experts that lie beside or below ``folder`` are referred to by relative paths, so that they can move together;
    others by absolute ones.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    references: list[dict[str, Any]] = [_entry(expert, folder) for expert in experts]
    save_aggregator(aggregator, folder / WEIGHTS_FILE)
    adapted = {id(denoiser): file for denoiser, file in adapter_files([expert.denoiser for expert in experts], folder)}
    for expert, reference in zip(experts, references, strict=True):
        if id(expert.denoiser) in adapted:
            reference["adapter"] = save_adapter(expert.denoiser, adapted[id(expert.denoiser)])
    added = any("added" in reference for reference in references)
    version = WITH_ADDITIONS if added else WITH_ADAPTERS if adapted else FORMAT
    spec = json.dumps({"format": version, "experts": references}, indent=2)
    (folder / SPEC).write_text(spec + "\n", encoding="utf-8")


def load_ensemble(
    folder: str | Path,
    *,
    sources: Sequence[str | Path] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    added: Sequence[str] = (),
) -> tuple[tuple[Expert, ...], Combiner]:
    """Experts and aggregator of a folder that ``save_ensemble`` wrote.

    Args:
        folder: the ensemble's folder.
        sources: where the experts are, in order, if not where they were.
        dtype: number type of experts and aggregator; float32 by default.
        device: where they go; the CPU by default.
        added: what to add to every expert beside what it had, such as ``"style.safetensors:0.7"``.

    Raises:
        ValueError: the folder is no ensemble or of another format, an expert has no source, or one of its files is
            missing or has changed.
    """
    folder = Path(folder)
    references = _read(folder)
    places = [reference["source"] for reference in references] if sources is None else [str(one) for one in sources]
    if len(places) != len(references):
        raise ValueError(
            f"{folder} has {len(references)} experts ({', '.join(one['name'] for one in references)}), but sources has "
            f"{len(places)} entries. Give one per expert, in this order."
        )
    requests = [_request(place, reference, folder) for place, reference in zip(places, references, strict=True)]
    extra = tuple(parse_addition(one, str(folder)) for one in added)
    requests = [
        replace(request, source=replace(request.source, added=(*request.source.added, *extra))) for request in requests
    ]
    experts = open_experts(requests, dtype or torch.float32, device)
    for expert, reference in zip(experts, references, strict=True):
        _compare(expert, reference["files"])
        if "adapter" in reference:
            load_adapter(expert.denoiser, folder, reference["adapter"])
    return experts, load_aggregator(folder / WEIGHTS_FILE, dtype=dtype or torch.float32).to(device)


def _entry(expert: Expert, folder: Path) -> dict[str, Any]:
    model, added = split_source(expert.source) if expert.source else (None, ())
    own = [{"file": _reference(one.where, folder), "weight": one.weight, "role": one.role} for one in added]
    return {
        "name": expert.name,
        "source": _reference(model, folder),
        "base": _reference(expert.base, folder),
        "files": dict(expert.files),
        **({"added": own} if own else {}),
    }


def _reference(source: str | None, folder: Path) -> str | None:
    if source is None or not Path(source).expanduser().exists():
        return source
    path, home = Path(source).expanduser().absolute(), folder.absolute()
    if not path.is_relative_to(home.parent):
        return str(path)
    relative = Path(os.path.relpath(path, home)).as_posix()
    return relative if relative.startswith("../") else f"./{relative}"


def _read(folder: Path) -> list[dict[str, Any]]:
    for file in (SPEC, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise ValueError(f"{folder} is not a saved ensemble: it has no {file}. Give a folder of save_pretrained.")
    spec = read_json(folder / SPEC)
    if spec.get("format") not in (FORMAT, WITH_ADAPTERS, WITH_ADDITIONS):
        raise ValueError(
            f"{folder / SPEC} has format {spec.get('format')!r}, but this version of diffusemble reads formats "
            f"{FORMAT} to {WITH_ADDITIONS}. Update diffusemble, or save the ensemble again."
        )
    references: list[dict[str, Any]] = spec["experts"]
    return references


def _request(place: str | None, reference: dict[str, Any], folder: Path) -> Request:
    name, base = reference["name"], reference["base"]
    if place is None:
        raise ValueError(
            f"Expert {name!r} of {folder} was a bare denoiser without a source. Say where it is with "
            f"from_pretrained(folder, sources=[...])."
        )
    try:
        source = _source(place, folder)
        if not source.added:
            source = replace(source, added=tuple(_addition(one, place, folder) for one in reference.get("added", ())))
        return Request(source, name, None if base is None else _source(base, folder))
    except ValueError as error:
        raise ValueError(
            f"Expert {name!r} of {folder}: {error} If the experts are elsewhere now, say where with "
            f"from_pretrained(folder, sources=[...])."
        ) from error


def _source(place: str, folder: Path) -> Source:
    (source,) = parse_source(_resolved(place, folder))
    return source


def _addition(entry: dict[str, Any], model: str, folder: Path) -> Addition:
    where = _resolved(entry["file"], folder)
    if not where.startswith("zoo:") and not Path(where).exists():
        raise ValueError(f"There is no file {where}, which was added to {model}. Restore it.")
    return Addition(where, entry["weight"], entry["role"])


def _resolved(place: str, folder: Path) -> str:
    return os.path.normpath(folder / place) if place.startswith(("./", "../")) else place


def _compare(expert: Expert, expected: dict[str, str]) -> None:
    for file, checksum in expected.items():
        found = expert.files.get(file)
        if found is None:
            raise ValueError(f"Expert {expert.name!r} ({expert.source}): the file {file} is missing. Restore it.")
        if found != checksum:
            raise ValueError(
                f"Expert {expert.name!r} ({expert.source}): {file} has changed since the ensemble was saved (SHA-256 "
                f"{found[:12]}..., expected {checksum[:12]}...). Restore it, or train the aggregator again."
            )
