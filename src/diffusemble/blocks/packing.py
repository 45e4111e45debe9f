"""Several experts' conditions in one tensor.

The experts' embeddings are packed along the token axis, so that classifier-free guidance (a concatenation along the
batch) and several images per prompt work in unmodified pipelines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def pack_text(embeddings: Sequence[Tensor]) -> Tensor:
    """Pack one embedding per expert into one tensor.

    Args:
        embeddings: n token embeddings ``[b s d]``, or n pooled embeddings ``[b d]``, all of one shape.

    Returns:
        ``[b n·s d]``, or ``[b n·d]`` for pooled embeddings.

    Raises:
        ValueError: no embeddings, or embeddings of different shapes.
    """
    shapes = [tuple(embedding.shape) for embedding in embeddings]
    if not shapes or len(set(shapes)) > 1 or len(shapes[0]) not in (2, 3):
        raise ValueError(
            f"pack_text needs one embedding per expert, all of one shape [b s d] (or [b d] if pooled); got {shapes}. "
            f"Pad every expert's prompt to the same number of tokens."
        )
    return torch.cat(list(embeddings), dim=1)


def unpack_text(packed: Tensor, n: int) -> tuple[Tensor, ...]:
    """Undo ``pack_text``: n tensors of equal shape.

    Raises:
        ValueError: the packed axis does not divide by n.
    """
    if packed.shape[1] % n:
        raise ValueError(
            f"The text embedding has shape {tuple(packed.shape)}; its axis 1 ({packed.shape[1]}) does not divide by "
            f"the {n} experts. An ensemble takes one embedding per expert: pass pack_text([...])."
        )
    return packed.chunk(n, dim=1)


def by_expert(packed: Tensor, sizes: Sequence[int], n: int) -> Tensor:
    """Sort what was packed part by part into what is packed expert by expert.

    Args:
        packed: ``[b Σ n·size ...]``: of every part, the embeddings of all n experts.
        sizes: length of one expert's parts along axis 1.
        n: number of experts.

    Returns:
        ``[b n·Σ size ...]``: of every expert, all its parts.
    """
    parts = [part.chunk(n, dim=1) for part in packed.split([n * size for size in sizes], dim=1)]
    return torch.cat([piece for own in zip(*parts, strict=True) for piece in own], dim=1)


@dataclass(frozen=True)
class PartwiseText:
    """How a pipeline packs text that several encoders of every expert wrote (SD3): one encoder after the other.

    Attributes:
        tokens: tokens of one expert's CLIP prompt; what follows them is T5's.
        pooled: widths of one expert's pooled embeddings, CLIP encoder by CLIP encoder.
        t5: whether the experts have T5 encoders; without, the pipeline writes zeros, which belong to all.
    """

    tokens: int
    pooled: tuple[int, ...]
    t5: bool

    def sorted(self, inputs: Mapping[str, Any], n: int) -> dict[str, Any]:
        """``inputs`` of a denoiser with text and pooled text packed expert by expert."""
        own = dict(inputs)
        if own.get("pooled_projections") is not None:
            check_width("pooled_projections", own["pooled_projections"], n * sum(self.pooled), n)
            own["pooled_projections"] = by_expert(own["pooled_projections"], self.pooled, n)
        if own.get("encoder_hidden_states") is not None:
            own["encoder_hidden_states"] = self._tokens_by_expert(own["encoder_hidden_states"], n)
        return own

    def _tokens_by_expert(self, text: Tensor, n: int) -> Tensor:
        clip, rest = text.split([n * self.tokens, text.shape[1] - n * self.tokens], dim=1)
        if not self.t5:
            rest = rest.repeat(1, n, 1)
        return by_expert(torch.cat([clip, rest], dim=1), (self.tokens, rest.shape[1] // n), n)


@dataclass(frozen=True)
class WideText:
    """How a pipeline packs text whose tokens it counts or numbers (Chroma, FLUX.2): the experts side by side in width.

    Attributes:
        width: of one expert's text.
        layers: how many outputs of a text encoder make up that width; the experts are side by side in each of them.
    """

    width: int
    layers: int = 1

    def sorted(self, inputs: Mapping[str, Any], n: int) -> dict[str, Any]:
        """``inputs`` of a denoiser with the text ``[b s n·d]`` packed expert by expert; its mask belongs to all."""
        text = inputs["encoder_hidden_states"]
        check_width("encoder_hidden_states", text, n * self.width, n)
        own = text.unflatten(2, (self.layers, n, -1)).unbind(3)
        return {**inputs, "encoder_hidden_states": pack_text([part.flatten(2) for part in own])}


TextLayout = PartwiseText | WideText
"""How a pipeline packs the text of all experts."""


def split_named(inputs: Mapping[str, Any], widths: Mapping[str, int | None], n: int) -> tuple[dict[str, Any], ...]:
    """One set of inputs per expert, in which packed inputs (where they are given) are cut.

    Args:
        inputs: of all experts.
        widths: of one expert's text or pooled text, by the names of what is packed; None: any.
        n: number of experts.

    Raises:
        ValueError: an input is not packed for n experts.
    """
    own = tuple(dict(inputs) for _ in range(n))
    for name, width in widths.items():
        if inputs.get(name) is not None:
            if width is not None:
                check_width(name, inputs[name], width if inputs[name].ndim == 3 else n * width, n)
            for mine, part in zip(own, unpack_text(inputs[name], n), strict=True):
                mine[name] = part.contiguous()  # so that an expert computes bit for bit what it computes alone
    return own


def check_width(name: str, packed: Tensor, width: int, n: int) -> None:
    """Make sure that what is packed for n experts is as wide as they take it.

    Raises:
        ValueError: it is of another width; most often it is one expert's.
    """
    if packed.shape[-1] != width:
        raise ValueError(
            f"{name} has shape {tuple(packed.shape)}, but for {n} experts its last axis must be {width}. Pass one "
            f"embedding per expert: what encode_prompt of the ensemble's own pipeline gives, or by hand "
            f"pack_text([...])."
        )
