"""Opening diffusers folders: local ones, those of the zoo, and hub repositories."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download

from diffusemble.config.places import near
from diffusemble.experts.checksums import read_index, variant_of
from diffusemble.experts.sources import INDEX, Source

NOTHING: Mapping[str, Any] = {}
_DESCRIBED = {"text": ("config.json",), "tokenizer": ("vocab.json", "tokenizer.json", "*.model")}
"""Files that must be there, by the first word of a part's name."""


def locate(source: Source) -> tuple[Path, Source]:
    """Local folder of a source (not of a file), downloaded if need be; a hub source comes back with its commit.

    Raises:
        ValueError: the hub has no such repository or revision, or cannot be reached; or files are added to the model.
    """
    refuse_added(source)
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


def refuse_added(source: Source) -> None:
    """Raise where only a model as it is can be taken.

    Raises:
        ValueError: names what is added.
    """
    if source.added:
        raise ValueError(
            f"{source}: here a model is taken as it is stored, so nothing can be added to it with a plus sign. Leave "
            f"{' and '.join(one.name for one in source.added)} out."
        )


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
    where: str, dtype: torch.dtype, *, revision: str | None = None, given: Mapping[str, Any] = NOTHING
) -> DiffusionPipeline:
    """The pipeline of a folder or hub id, from safetensors files only and without a safety checker.

    Args:
        where: the folder or hub id.
        dtype: number type of the weights.
        revision: of a hub repository.
        given: parts that are there already, or None for parts to leave out; neither is read.

    Raises:
        ValueError: its pipeline class is not one of diffusers', or a part cannot be opened.
    """
    cls = pipeline_class(where, revision)
    parameters = inspect.signature(cls).parameters
    index = read_index(_index_folder(where, revision))
    # Diffusers itself says None only for parts that its class calls optional; SD3 without T5 is saved all the same.
    absent = {part: None for part, entry in index.items() if isinstance(entry, list) and entry[0] is None}
    own: dict[str, Any] = {part: value for part, value in {**absent, **given}.items() if part in parameters}
    _check_complete(Path(where), [part for part in index if part in parameters and part not in own])
    if "safety_checker" in parameters:
        own |= {"safety_checker": None, "requires_safety_checker": False}
    try:
        with quiet():
            return cls.from_pretrained(
                where,
                dtype=dtype,
                use_safetensors=True,
                variant=variant_of(Path(where)),
                revision=revision,
                **own,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{where} cannot be opened ({first_sentence(error)}). Copy or download the folder again."
        ) from error


def _check_complete(folder: Path, parts: Sequence[str]) -> None:
    """Raise where a local folder lacks what describes a part: transformers makes one up then."""
    for part in parts:
        wanted = _DESCRIBED.get(part.split("_")[0], ())
        if folder.is_dir() and wanted and not any(any((folder / part).glob(name)) for name in wanted):
            raise ValueError(
                f"{folder} lacks its {part}: there is no {' or '.join(wanted)} in {folder / part}. Copy or download "
                f"the folder again."
            )


def index_of(where: str, revision: str | None) -> dict[str, Any]:
    """``model_index.json`` of a folder or hub id."""
    return read_index(_index_folder(where, revision))


def config_folder(where: str, revision: str | None, part: str) -> str:
    """Local folder with the ``config.json`` of a part of a folder or hub id; weights are not downloaded."""
    if Path(where).is_dir():
        if not (Path(where) / part / "config.json").is_file():  # transformers would take a standard one
            raise ValueError(f"{Path(where) / part / 'config.json'} is missing")
        return str(Path(where) / part)
    return str(Path(hf_hub_download(where, f"{part}/config.json", revision=revision)).parent)


def pipeline_class(where: str, revision: str | None) -> Any:
    """The diffusers class of a folder's or hub id's pipeline.

    Raises:
        ValueError: this version of diffusers does not have it.
    """
    name = index_of(where, revision)["_class_name"]
    cls = getattr(diffusers, name, None) if isinstance(name, str) else None
    if cls is None:
        raise ValueError(f"{where} needs the pipeline class {name!r}, which this version of diffusers does not have.")
    return cls


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of diffusers and transformers: a library prints nothing."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", FutureWarning)  # of diffusers about its own classes
        for each in (diffusers_logging, transformers_logging):
            stack.callback(each.set_verbosity, each.get_verbosity())
            each.set_verbosity_error()
            if each.is_progress_bar_enabled():
                stack.callback(each.enable_progress_bar)
                each.disable_progress_bar()
        yield


def first_sentence(error: Exception) -> str:
    """The start of a message of diffusers; what follows advises on diffusers' own options."""
    text = next(iter(str(error).strip().split(". ")[0].splitlines()), "")
    while text.count("(") > text.count(")"):  # it goes on in the sentences that are left out
        text = text[: text.rindex("(")].rstrip()
    return text.rstrip(".:") or type(error).__name__


def _not_on_hub(source: Source, error: Exception) -> str:
    return (
        f"{source} is not a local path{near(source.where)}, and no repository with safetensors weights could be "
        f"fetched under this name ({first_sentence(error)}). Check the spelling, the connection, and for gated models "
        f"`hf auth login`."
    )
