"""Opening diffusers folders: local ones, those of the zoo, and hub repositories."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download

from diffusemble.experts.checksums import read_index, variant_of
from diffusemble.experts.sources import INDEX, Source


def locate(source: Source) -> tuple[Path, Source]:
    """Local folder of a source (not of a file), downloaded if need be; a hub source comes back with its commit.

    Raises:
        ValueError: the hub has no such repository or revision, or cannot be reached.
    """
    if source.kind == "zoo":
        from diffusemble import zoo

        return zoo.folder(source.where), source
    if source.kind == "folder":
        return Path(source.where).expanduser(), source
    try:
        fetched = DiffusionPipeline.download(
            source.where, revision=source.revision, use_safetensors=True, safety_checker=None
        )
    except (OSError, ValueError) as error:
        raise ValueError(_not_on_hub(source, error)) from error
    return Path(fetched), replace(source, revision=Path(fetched).name)


def pin(source: Source) -> Source:
    """A hub source with the commit that its revision means now, without downloading weights; others as they are.

    Raises:
        ValueError: the hub has no such repository or revision, or cannot be reached.
    """
    if source.kind != "hub":
        return source
    try:
        return replace(source, revision=_index_folder(source.where, source.revision).name)
    except (OSError, ValueError) as error:
        raise ValueError(_not_on_hub(source, error)) from error


def _index_folder(where: str, revision: str | None) -> Path:
    if Path(where).is_dir():
        return Path(where)
    return Path(hf_hub_download(where, INDEX, revision=revision)).parent


def open_folder(
    where: str, dtype: torch.dtype, *, revision: str | None = None, without: tuple[str, ...] = ()
) -> DiffusionPipeline:
    """The pipeline of a folder or hub id, from safetensors files only, without a safety checker and ``without`` parts.

    Raises:
        ValueError: its pipeline class is not one of diffusers', or a part cannot be opened.
    """
    name = read_index(_index_folder(where, revision))["_class_name"]
    cls = getattr(diffusers, name, None) if isinstance(name, str) else None
    if cls is None:
        raise ValueError(f"{where} needs the pipeline class {name!r}, which this version of diffusers does not have.")
    left_out: dict[str, Any] = dict.fromkeys(without)
    parameters = inspect.signature(cls).parameters
    if "safety_checker" in parameters:
        left_out |= {"safety_checker": None, "requires_safety_checker": False}
    try:
        with quiet():
            return cls.from_pretrained(
                where,
                dtype=dtype,
                use_safetensors=True,
                variant=variant_of(Path(where)),
                revision=revision,
                **{part: value for part, value in left_out.items() if part in parameters},
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{where} cannot be opened ({first_sentence(error)}). Copy or download the folder again."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of diffusers and transformers: a library prints nothing."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    with ExitStack() as stack:
        for each in (diffusers_logging, transformers_logging):
            stack.callback(each.set_verbosity, each.get_verbosity())
            each.set_verbosity_error()
            if each.is_progress_bar_enabled():
                stack.callback(each.enable_progress_bar)
                each.disable_progress_bar()
        yield


def first_sentence(error: Exception) -> str:
    """The start of a message of diffusers; what follows advises on diffusers' own options."""
    return (
        str(error).strip().split(". ")[0].splitlines()[0].rstrip(".:") if str(error).strip() else type(error).__name__
    )


def _not_on_hub(source: Source, error: Exception) -> str:
    return (
        f"{source} is not a local path, and no repository with safetensors weights could be fetched under this name "
        f"({first_sentence(error)}). Check the spelling, the connection, and for gated models `hf auth login`."
    )
