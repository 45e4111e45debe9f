"""Phrases as the text encoder of a pipeline knows them: one vector each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def encode_phrases(pipe: Any, phrases: Sequence[str]) -> Tensor:
    """Pooled embeddings: the last hidden state at the end token, after the final norm, without projection.

    Args:
        pipe: a pipeline with ``tokenizer`` and ``text_encoder`` (CLIP).
        phrases: what to encode.

    Returns:
        ``[n d]``.

    Raises:
        ValueError: there are no phrases, or one is empty or longer than the text encoder reads.
    """
    if not phrases:
        raise ValueError("There are no phrases to encode. Give at least one.")
    for number, phrase in enumerate(phrases):
        if not phrase.strip():
            raise ValueError(f"Phrase {number} of {len(phrases)} is empty. Say in words what it stands for.")
    # Padded to the longest one only: what stands behind the end token cannot be seen from it.
    tokens = pipe.tokenizer(list(phrases), padding=True, return_tensors="pt")
    length, most = tokens.input_ids.shape[1], pipe.tokenizer.model_max_length
    if length > most:
        longest = max(phrases, key=lambda phrase: len(pipe.tokenizer(phrase).input_ids))
        raise ValueError(
            f"A phrase has at most {most} tokens, of which two mark its ends; {longest!r} has {length}. Shorten it."
        )
    # Where the pipeline computes: in a memory plan the encoder itself comes there when it is called.
    pooled: Tensor = pipe.text_encoder(**tokens.to(pipe.device)).pooler_output
    return pooled
