"""Several experts' conditions in one tensor.

The experts' embeddings are packed along the token axis, so that classifier-free guidance (a concatenation along the
batch) and several images per prompt work in unmodified pipelines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def split_named(inputs: Mapping[str, Any], names: Sequence[str], n: int) -> tuple[dict[str, Any], ...]:
    """One set of inputs per expert, in which the packed inputs ``names`` (where they are given) are cut.

    Raises:
        ValueError: a packed axis does not divide by n.
    """
    own = tuple(dict(inputs) for _ in range(n))
    for name in names:
        if inputs.get(name) is not None:
            for mine, part in zip(own, unpack_text(inputs[name], n), strict=True):
                mine[name] = part.contiguous()  # so that an expert computes bit for bit what it computes alone
    return own
