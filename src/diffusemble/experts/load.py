"""Loading experts from wherever they are."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from diffusemble.config.places import looked
from diffusemble.experts.additions.add import add_all, check_added, words_of
from diffusemble.experts.additions.embeddings import Word, distinct, tell_of_tokens
from diffusemble.experts.base import choose_base
from diffusemble.experts.checksums import DENOISERS, WEIGHTS, folder_checksums, read_index
from diffusemble.experts.expert import Expert, refuse_equal
from diffusemble.experts.folder import locate, pin
from diffusemble.experts.hub import is_place
from diffusemble.experts.shelf import Shelf
from diffusemble.experts.single_file import open_file
from diffusemble.experts.sources import Addition, Source, parse_addition, parse_source, parse_sources


@dataclass(frozen=True)
class Request:
    """One expert to load: where from, under which name, and for a single file with which base."""

    source: Source
    name: str
    base: Source | None = None


def load_experts(
    sources: str | Path | Sequence[str | Path],
    *,
    names: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    base: str | Path | Sequence[str | Path] | None = None,
    vae: str | Path | None = None,
) -> tuple[Expert, ...]:
    """Load experts; only safetensors files are read.

    Args:
        sources: one or more of: a diffusers folder; a hub id ``"org/name"`` or ``"org/name@revision"``; a
            ``.safetensors`` file; ``"zoo:people"`` or a group ``"zoo:topics"`` of the shipped zoo. Each may carry
            files with plus signs: ``"model.safetensors+style.safetensors:0.7"`` for LoRA and LyCORIS with weights,
            textual inversions, and a VAE.
        names: a name for every expert; by default those of the folders, repositories and files.
        dtype: number type of the weights; float32 by default, whatever the files hold.
        device: where the weights go; the CPU by default.
        base: folder, hub id or ``"zoo:..."`` that gives single files their configuration and missing parts, or several
            of them: a file takes the first of its family. By default those of ``sources`` that are no files, else a
            hub repository of the file's family.
        vae: for all experts, in the place of their own: a VAE's folder or file, a pipeline's folder, a checkpoint,
            a hub id, ``"zoo:..."``, or the name of one of the experts.

    Returns:
        The experts in the order of ``sources``. Equal text encoders and VAEs are one object, kept in memory once.

    Raises:
        ValueError: a source is missing, damaged, unknown, a pickle, has numbers that are not finite, or does not fit
            its base; the message names it.
    """
    found = parse_sources(sources)
    called = _names(found, names)
    if vae is not None:
        found = tuple(replace(one, added=(*one.added, _vae(str(vae), found, called))) for one in found)
    bases = _bases(base, found)
    requests = [Request(source, name, bases.get(source.where)) for source, name in zip(found, called, strict=True)]
    return open_experts(requests, dtype or torch.float32, device)


def open_experts(
    requests: Sequence[Request], dtype: torch.dtype, device: str | torch.device | None
) -> tuple[Expert, ...]:
    """Open every request, read and keep equal parts once, and put everything on ``device``."""
    for request in requests:
        check_added(request.source)
    words = distinct([word for request in requests for word in words_of(request.source)])
    shelf = Shelf(dtype)
    shared: dict[str, nn.Module] = {}
    experts = []
    for request in requests:
        expert = _open(request, shelf, words, shared)
        for part in (expert.denoiser, *expert.components.values()):
            if isinstance(part, nn.Module):
                part.to(device)
        experts.append(expert)
    return tuple(experts)


def _open(request: Request, shelf: Shelf, words: Sequence[Word], shared: dict[str, nn.Module]) -> Expert:
    source, base = request.source, request.base
    if source.kind == "file":
        file = Path(source.where).expanduser()
        base = base or choose_base(file, (), named=False)
        pipeline, files = open_file(file, base, shelf)
    else:
        folder, source = locate(replace(source, added=()))
        files = _zoo_checksum(source) if source.kind == "zoo" else folder_checksums(folder, read_index(folder))
        pipeline = shelf.open(str(folder))
    tell_of_tokens(type(pipeline), words_of(request.source))
    found = {name: part for name, part in pipeline.components.items() if part is not None}
    parts, on_top = add_all(found, request.source.added, words, shelf.dtype)
    _check_finite(request, parts)
    denoiser = next(parts.pop(part) for part in DENOISERS if part in parts)
    return Expert(
        name=request.name,
        denoiser=denoiser,
        components={**_settings(pipeline), **share_parts(parts, shared)},
        pipeline_class=type(pipeline),
        source=str(replace(source, added=request.source.added)),
        files={**files, **on_top},
        base=None if base is None else str(base),
    )


def _check_finite(request: Request, parts: Mapping[str, Any]) -> None:
    """Raise where a weight is no number or infinite: every picture would be black."""
    for part, model in parts.items():
        for name, weight in model.state_dict().items() if isinstance(model, nn.Module) else ():
            if weight.is_floating_point() and weight.numel() and not all(one.isfinite() for one in weight.aminmax()):
                raise ValueError(
                    f"Expert {request.name!r} ({request.source}): its {part} has numbers that are not finite in "
                    f"{str(weight.dtype).removeprefix('torch.')}, in {name}. If float32 or bfloat16 does not help, a "
                    f"merge or a training of the file went wrong: get another version."
                )


def _bases(given: str | Path | Sequence[str | Path] | None, sources: Sequence[Source]) -> dict[str, Source]:
    """The base of every single file, by its path."""
    files = [source for source in sources if source.kind == "file"]
    named = [] if given is None else [given] if isinstance(given, (str, Path)) else list(given)
    candidates = [one for text in named for one in parse_source(text)]
    if len(candidates) > len(named) or any(one.kind == "file" or one.added for one in candidates):
        raise ValueError(f"A base must be one diffusers folder, hub id or zoo model; got {given!r}.")
    if not named:
        candidates = [replace(one, added=()) for one in sources if one.kind != "file"]
    pinned = [pin(one) for one in dict.fromkeys(candidates)] if files else []
    return {file.where: choose_base(Path(file.where).expanduser(), pinned, bool(named)) for file in files}


def _vae(given: str, sources: Sequence[Source], names: Sequence[str]) -> Addition:
    """The addition that means the VAE of one of the experts, or of a file or folder."""
    if given in names:
        return Addition(str(replace(sources[names.index(given)], added=())), role="vae")
    if not is_place(given):
        raise ValueError(
            f"vae: there is no file or folder {looked(given)}. Give a VAE's file or folder, a hub id, zoo:NAME, or the "
            f"name of one of the experts: {', '.join(names)}."
        )
    return parse_addition(f"vae={given}", str(sources[0]))


def _zoo_checksum(source: Source) -> dict[str, str]:
    """The shipped files' checksum: what a machine unpacks from them is its own affair."""
    from diffusemble import zoo

    return {WEIGHTS: zoo.fingerprint(source.where)}


def _settings(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """What the pipeline's constructor takes beside its parts, such as ``requires_aesthetics_score``."""
    names = inspect.signature(type(pipeline)).parameters.keys() & pipeline.config.keys()
    return {name: pipeline.config[name] for name in names - pipeline.components.keys()}


def share_parts(parts: Mapping[str, Any], shared: dict[str, nn.Module]) -> dict[str, Any]:
    """``parts``, of which those that compute the same as one in ``shared`` are that one; others are noted there."""
    known = {id(part) for part in shared.values()}  # a part from the shelf need not be compared again
    return {
        name: shared.setdefault(_fingerprint(part), part)
        if isinstance(part, nn.Module) and id(part) not in known
        else part
        for name, part in parts.items()
    }


def _fingerprint(part: nn.Module) -> str:
    """Equal for parts of one class that compute the same."""
    config: Any = getattr(part, "config", {})
    entries = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    named = {key: value for key, value in entries.items() if not key.startswith("_") and "version" not in key}
    digest = hashlib.sha256(f"{type(part).__name__}{json.dumps(named, sort_keys=True, default=str)}".encode())
    for key, tensor in part.state_dict().items():
        digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _names(sources: Sequence[Source], names: Sequence[str] | None) -> list[str]:
    if names is None:
        own = [source.name for source in sources]
        seen = [own[: place + 1].count(name) for place, name in enumerate(own)]
        return [name if count == 1 else f"{name} {count}" for name, count in zip(own, seen, strict=True)]
    given = [names] if isinstance(names, str) else list(names)
    if len(given) != len(sources):
        raise ValueError(
            f"names must have one entry per expert: got {len(given)} names ({', '.join(given)}) for {len(sources)} "
            f"experts ({', '.join(map(str, sources))}). Give {len(sources)} names, or none."
        )
    refuse_equal(given)  # before anything is loaded
    return given
