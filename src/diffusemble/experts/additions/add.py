"""Everything that was added to a model with plus signs, put where it belongs by what each file is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from diffusemble.experts.additions.embeddings import Word, add_words, read_words
from diffusemble.experts.additions.lora import add_lora
from diffusemble.experts.additions.vae import other_vae
from diffusemble.experts.checksums import sha256
from diffusemble.experts.formats.adapters import BUNDLED
from diffusemble.experts.formats.contents import ADAPTERS, EMBEDDING, VAE, contents_of
from diffusemble.experts.formats.header import Header, read_header
from diffusemble.experts.sources import Addition, Source


def words_of(source: Source) -> tuple[Word, ...]:
    """The textual inversions among what was added to a model.

    Raises:
        ValueError: a file is damaged, or has a weight, which only a LoRA can have.
    """
    headers = [read_header(Path(one.where).expanduser()) for one in source.added if one.role is None]
    return tuple(word for header in headers if has_words(header) for word in read_words(header))


def check_added(source: Source) -> None:
    """Make sure that everything added is of a kind that can be, before models are loaded.

    Raises:
        ValueError: names the file, what it is, and what could be added.
    """
    for one in source.added:
        if one.role is not None:
            _refuse_weight(one, "a VAE")
            continue
        header = read_header(Path(one.where).expanduser())
        contents = contents_of(header)
        if contents.kind in (EMBEDDING, VAE):
            _refuse_weight(one, str(contents))
        elif contents.kind not in ADAPTERS:
            what = f"it is {contents}" if contents.kind != "unknown" else "what it is cannot be told from its names"
            raise ValueError(
                f"{one.where} cannot be added to {source.where}: {what}. Behind a plus sign comes a LoRA, LyCORIS, "
                f"textual inversion or VAE; whole models are experts of their own, or merged with `diffusemble merge`."
            )


def add_all(
    parts: Mapping[str, Any], added: Sequence[Addition], words: Sequence[Word], dtype: torch.dtype
) -> tuple[dict[str, Any], dict[str, str]]:
    """Parts of a pipeline with everything added to them.

    Args:
        parts: of the pipeline; the denoiser and the tokenizers are changed in place, other parts are copied first.
        added: what to add, in order.
        words: textual inversions that all experts of an ensemble must have tokens for.
        dtype: number type of a VAE that is added.

    Returns:
        All parts, and SHA-256 of what was added, as ``+<name>[:<weight>]``.

    Raises:
        ValueError: something does not fit the model.
    """
    own = dict(parts)
    known: list[Word] = []
    files: dict[str, str] = {}
    for one in added:
        kind = VAE if one.role == "vae" else _kind(one)
        if kind == VAE:
            own["vae"], checksum = other_vae(own.get("vae"), one, dtype)
        else:
            header = read_header(Path(one.where).expanduser())
            checksum = sha256(header.file)
            if has_words(header):
                known.extend(read_words(header))
            if kind != EMBEDDING:
                own = add_lora(own, header, one.weight)
        files[_free(f"+{one.name}", files)] = checksum
    return (add_words(own, words, known) if words else own), files


def has_words(header: Header) -> bool:
    """Whether a file is a textual inversion, or a LoRA with some inside."""
    return header.has(BUNDLED) or contents_of(header).kind == EMBEDDING


def _kind(one: Addition) -> str:
    return contents_of(read_header(Path(one.where).expanduser())).kind


def _free(name: str, taken: Mapping[str, str]) -> str:
    return name if name not in taken else _free(f"{name}'", taken)


def _refuse_weight(one: Addition, what: str) -> None:
    if one.weight != 1:
        raise ValueError(f"{one.where} is {what}, which has no weight; got {one.weight:g}. Leave :{one.weight:g} out.")
