"""Textual inversions: words with vectors of their own.

A pipeline tokenizes a prompt once for all experts, so a word that one expert knows must be a token for all of them:
it is added to every expert's tokenizers, in one order. An expert that was not given the file reads the vector of
``<|endoftext|>`` in the word's place, with which CLIP fills up short prompts: to it the word says nothing. With T5 that
vector is ``<pad>``'s.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from safetensors import safe_open
from tokenizers import AddedToken
from torch import Tensor, nn

from diffusemble.experts.folder import quiet
from diffusemble.experts.formats.adapters import BUNDLED, is_adapter
from diffusemble.experts.formats.contents import VECTORS
from diffusemble.experts.formats.header import Header

_BUNDLED_KEY = re.compile(rf"{re.escape(BUNDLED)}(.+?)\.({'|'.join(VECTORS)}|emb_params|(?:string_to_param\.)?\*)")
_T5 = "t5"
_LOG = logging.getLogger(__name__)
_LEGACY_END = 2  # an end token that stands for "the largest number in the prompt"


@dataclass(frozen=True)
class Word:
    """One textual inversion.

    Attributes:
        text: what to write in a prompt.
        header: of its file.
        vectors: ``[v d]`` by text encoder: ``"text_encoder"``, ``"text_encoder_2"``, or ``"t5"`` wherever T5 is.
    """

    text: str
    header: Header
    vectors: Mapping[str, Tensor]

    def tokens(self, part: str) -> tuple[str, ...]:
        """One token for every vector of a text encoder, as diffusers names them: ``word``, ``word_1``, ..."""
        return (self.text, *(f"{self.text}_{number}" for number in range(1, len(self.vectors[part]))))


def read_words(header: Header) -> tuple[Word, ...]:
    """The textual inversion in a file, or those in a LoRA.

    The word is the file's name, the token that diffusers' training stored, or OneTrainer's placeholder.

    Raises:
        ValueError: there are vectors that no text encoder reads.
    """
    found: dict[str, dict[str, Tensor]] = {}
    with safe_open(str(header.file), framework="pt") as opened:
        for key in header.forms:
            place = _place(key, header)
            if place is not None:
                word, part = place
                found.setdefault(word, {})[part] = opened.get_tensor(key)
    return tuple(
        Word(text, header, {part: tensor.reshape(-1, tensor.shape[-1]) for part, tensor in vectors.items()})
        for text, vectors in found.items()
    )


def _place(key: str, header: Header) -> tuple[str, str] | None:
    """Word and text encoder of a tensor; None for one of a LoRA that holds no vectors."""
    if key.startswith(BUNDLED):
        found = _BUNDLED_KEY.fullmatch(key)
        if found is None:
            raise ValueError(
                f"{header.file} stores vectors {key!r}, which no text encoder reads here: the words of CLIP's encoders "
                f"and T5 are read. Get a version of the LoRA without them."
            )
        return found[1], VECTORS.get(found[2], "text_encoder")
    if is_adapter(header):
        return None
    if key in VECTORS:
        return header.file.stem, VECTORS[key]
    return (header.file.stem if key in ("emb_params", "*") else key), "text_encoder"


def distinct(words: Sequence[Word]) -> tuple[Word, ...]:
    """Every word once, in order.

    Raises:
        ValueError: two files have one word, but different numbers of vectors.
    """
    found: dict[str, Word] = {}
    for word in words:
        first = found.setdefault(word.text, word)
        if _counts(first) != _counts(word):
            raise ValueError(
                f"{first.header.file} and {word.header.file} both teach the word {word.text!r}, but with different "
                f"numbers of vectors. Rename one of the files: its name is the word."
            )
    return tuple(found.values())


def _counts(word: Word) -> dict[str, int]:
    return {part: len(matrix) for part, matrix in word.vectors.items()}


def add_words(parts: Mapping[str, Any], words: Sequence[Word], own: Sequence[Word]) -> dict[str, Any]:
    """Parts of a pipeline that know new words.

    Args:
        parts: of the pipeline; its tokenizers are changed in place, its text encoders are copied first.
        words: that the experts of an ensemble know together, in one order for all.
        own: those of them that this expert was given.

    Returns:
        All parts.

    Raises:
        ValueError: the model has no text encoder for a word, or one of another width, or has the word already.
    """
    changed = dict(parts)
    vectors = {(word.text, part): matrix for word in own for part, matrix in word.vectors.items()}
    for part in dict.fromkeys(part for word in words for part in word.vectors):
        place = _place_of(part, parts)
        encoder, tokenizer = parts.get(place), parts.get(place.replace("text_encoder", "tokenizer"))
        _check(encoder, tokenizer, part, [word for word in own if part in word.vectors])
        if not _reads(encoder, tokenizer, part):
            continue  # an expert of another kind, which reads prompts by a tokenizer of its own
        encoder, tokenizer = copy.deepcopy(encoder), cast(Any, tokenizer)
        for word in (one for one in words if part in one.vectors):
            if word.text in tokenizer.get_added_vocab():
                file = word.header.file
                raise ValueError(f"The model knows the word {word.text!r} of {file} already. Rename the file.")
            _add(encoder, tokenizer, word.tokens(part), vectors.get((word.text, part)))
        changed[place] = encoder
    return changed


def tell_of_tokens(pipeline: type, words: Sequence[Word]) -> None:
    """Log how to write words of several vectors, if a pipeline reads only the first of them."""
    if issubclass(pipeline, TextualInversionLoaderMixin):
        return
    for word in words:
        tokens = max((word.tokens(part) for part in word.vectors), key=len)
        if len(tokens) > 1:
            _LOG.warning(
                f"{word.header.file} has {len(tokens)} vectors, and {pipeline.__name__} reads {word.text!r} as the "
                f"first of them. Write all of them into the prompt: {' '.join(tokens)}"
            )


def _place_of(part: str, parts: Mapping[str, Any]) -> str:
    """The part that a file calls T5; others have their names."""
    if part != _T5:
        return part
    return next((name for name in parts if name.startswith("text_encoder") and _kind(parts[name]) == _T5), "")


def _kind(encoder: Any) -> str:
    return str(getattr(getattr(encoder, "config", None), "model_type", ""))


def _check(encoder: Any, tokenizer: Any, part: str, words: Sequence[Word]) -> None:
    for word in words:
        file = word.header.file
        if not _reads(encoder, tokenizer, part):
            kind = "T5" if part == _T5 else "CLIP"
            raise ValueError(
                f"{file} has vectors for the {kind if part == _T5 else part}, but this model has no {kind} text "
                f"encoder there."
            )
        width, wanted = word.vectors[part].shape[-1], encoder.config.hidden_size
        if width != wanted:
            raise ValueError(
                f"{file} has vectors of width {width}, but the {part} of this model reads {wanted} (SD 1.x: 768, SD "
                f"2.x: 1024, SDXL: 768 and 1280, T5-XXL: 4096). Give a textual inversion of the model's family."
            )


def _reads(encoder: Any, tokenizer: Any, part: str) -> bool:
    kind = _kind(encoder)
    return tokenizer is not None and (kind == _T5 if part == _T5 else "clip" in kind)


def _add(encoder: Any, tokenizer: Any, tokens: Sequence[str], matrix: Tensor | None) -> None:
    tokenizer.add_tokens([AddedToken(token, single_word=True) for token in tokens])
    old: nn.Embedding = encoder.get_input_embeddings()
    if encoder.config.eos_token_id == _LEGACY_END:
        encoder.config.eos_token_id = tokenizer.eos_token_id  # new tokens have larger numbers than the end
        inner = getattr(encoder, "text_model", encoder)
        inner.eos_token_id = tokenizer.eos_token_id
    start = len(tokenizer) - len(tokens)
    rows = old.weight.data
    nothing = tokenizer.pad_token_id if _kind(encoder) == _T5 else tokenizer.eos_token_id
    silent = rows[nothing].expand(len(tokens), -1)
    fresh = silent if matrix is None else matrix.to(rows.device, rows.dtype)
    with quiet():
        encoder.resize_token_embeddings(max(len(tokenizer), len(rows)), mean_resizing=False)
    new = encoder.get_input_embeddings().weight
    with torch.no_grad():
        new[start : start + len(tokens)] = fresh
