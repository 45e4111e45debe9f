"""Textual inversions: words with vectors of their own.

A pipeline tokenizes a prompt once for all experts, so a word that one expert knows must be a token for all of them:
it is added to every expert's tokenizers, in one order. An expert that was not given the file reads the vector of
``<|endoftext|>`` in the word's place, with which CLIP fills up short prompts: to it the word says nothing.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import AddedToken
from torch import Tensor, nn

from diffusemble.experts.folder import quiet
from diffusemble.experts.formats.adapters import BUNDLED, is_adapter
from diffusemble.experts.formats.header import Header

_BUNDLED_KEY = re.compile(re.escape(BUNDLED) + r"(.+)\.(clip_l|clip_g|string_to_param\.\*)")
_NAMED = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
_LEGACY_END = 2  # an end token that stands for "the largest number in the prompt"


@dataclass(frozen=True)
class Word:
    """One textual inversion.

    Attributes:
        text: what to write in a prompt.
        header: of its file.
        vectors: ``[v d]`` by text encoder.
    """

    text: str
    header: Header
    vectors: Mapping[str, Tensor]

    @property
    def tokens(self) -> tuple[str, ...]:
        """One token for every vector, as diffusers names them: ``word``, ``word_1``, ..."""
        count = len(next(iter(self.vectors.values())))
        return (self.text, *(f"{self.text}_{number}" for number in range(1, count)))


def read_words(header: Header) -> tuple[Word, ...]:
    """The textual inversion in a file, or those in a LoRA.

    The word is the file's name, the token that diffusers' training stored, or OneTrainer's placeholder.

    Raises:
        ValueError: there are vectors that no text encoder reads, or different numbers of them for two encoders.
    """
    found: dict[str, dict[str, Tensor]] = {}
    with safe_open(str(header.file), framework="pt") as opened:
        for key in header.forms:
            place = _place(key, header)
            if place is not None:
                word, part = place
                found.setdefault(word, {})[part] = opened.get_tensor(key)
    return tuple(_word(text, header, vectors) for text, vectors in found.items())


def _place(key: str, header: Header) -> tuple[str, str] | None:
    """Word and text encoder of a tensor; None for one of a LoRA that holds no vectors."""
    if key.startswith(BUNDLED):
        found = _BUNDLED_KEY.fullmatch(key)
        if found is None:
            raise ValueError(
                f"{header.file} stores vectors {key!r}, which no text encoder reads here: the words of CLIP's encoders "
                f"are read. Get a version of the LoRA without them."
            )
        return found[1], _NAMED.get(found[2], "text_encoder")
    if is_adapter(header):
        return None
    if key in _NAMED:
        return header.file.stem, _NAMED[key]
    return (header.file.stem if key in ("emb_params", "*") else key), "text_encoder"


def _word(text: str, header: Header, vectors: Mapping[str, Tensor]) -> Word:
    whole = {part: tensor.reshape(-1, tensor.shape[-1]) for part, tensor in vectors.items()}
    counts = [str(len(whole[part])) for part in sorted(whole)]
    if len(set(counts)) > 1:
        raise ValueError(
            f"{header.file} has {' and '.join(counts)} vectors for the two text "
            f"encoders; there must be as many for each. Get the file again."
        )
    return Word(text, header, whole)


def distinct(words: Sequence[Word]) -> tuple[Word, ...]:
    """Every word once, in order.

    Raises:
        ValueError: two files have one word, but different numbers of vectors.
    """
    found: dict[str, Word] = {}
    for word in words:
        first = found.setdefault(word.text, word)
        if first.tokens != word.tokens or first.vectors.keys() != word.vectors.keys():
            raise ValueError(
                f"{first.header.file} and {word.header.file} both teach the word {word.text!r}, but with different "
                f"numbers of vectors. Rename one of the files: its name is the word."
            )
    return tuple(found.values())


def add_words(parts: Mapping[str, Any], words: Sequence[Word], own: Sequence[Word]) -> dict[str, Any]:
    """Parts of a pipeline that know new words.

    Args:
        parts: of the pipeline; its tokenizers are changed in place, its text encoders are copied first.
        words: that the experts of an ensemble know together, in one order for all.
        own: those of them that this expert was given.

    Returns:
        All parts.

    Raises:
        ValueError: the model has no CLIP text encoder for a word, or one of another width, or has the word already.
    """
    changed = dict(parts)
    vectors = {(word.text, part): matrix for word in own for part, matrix in word.vectors.items()}
    for part in dict.fromkeys(part for word in words for part in word.vectors):
        of_part = [word for word in words if part in word.vectors]
        encoder, tokenizer = parts.get(part), parts.get(_TOKENIZERS[part])
        mine = [word for word in own if part in word.vectors]
        _check(encoder, tokenizer, part, mine)
        if encoder is None or tokenizer is None or not _reads(encoder, tokenizer):
            continue  # an expert of another kind, which reads prompts by a tokenizer of its own
        encoder = copy.deepcopy(encoder)
        for word in of_part:
            if word.text in tokenizer.get_added_vocab():
                file = word.header.file
                raise ValueError(f"The model knows the word {word.text!r} of {file} already. Rename the file.")
            _add(encoder, tokenizer, word.tokens, vectors.get((word.text, part)))
        changed[part] = encoder
    return changed


def _check(encoder: Any, tokenizer: Any, part: str, words: Sequence[Word]) -> None:
    for word in words:
        file = word.header.file
        if not _reads(encoder, tokenizer):
            raise ValueError(f"{file} has vectors for the {part}, but this model has no CLIP text encoder there.")
        width, wanted = word.vectors[part].shape[-1], encoder.config.hidden_size
        if width != wanted:
            raise ValueError(
                f"{file} has vectors of width {width}, but the {part} of this model reads {wanted} (SD 1.x: 768, SD "
                f"2.x: 1024, SDXL: 768 and 1280). Give a textual inversion of the model's family."
            )


def _reads(encoder: Any, tokenizer: Any) -> bool:
    return encoder is not None and tokenizer is not None and "clip" in encoder.config.model_type


def _add(encoder: Any, tokenizer: Any, tokens: Sequence[str], matrix: Tensor | None) -> None:
    tokenizer.add_tokens([AddedToken(token, single_word=True) for token in tokens])
    old: nn.Embedding = encoder.get_input_embeddings()
    if encoder.config.eos_token_id == _LEGACY_END:
        encoder.config.eos_token_id = tokenizer.eos_token_id  # new tokens have larger numbers than the end
        inner = getattr(encoder, "text_model", encoder)
        inner.eos_token_id = tokenizer.eos_token_id
    start = len(tokenizer) - len(tokens)
    rows = old.weight.data
    silent = rows[tokenizer.eos_token_id].expand(len(tokens), -1)
    fresh = silent if matrix is None else matrix.to(rows.device, rows.dtype)
    with quiet():
        encoder.resize_token_embeddings(max(len(tokenizer), len(rows)), mean_resizing=False)
    new = encoder.get_input_embeddings().weight
    with torch.no_grad():
        new[start : start + len(tokens)] = fresh
