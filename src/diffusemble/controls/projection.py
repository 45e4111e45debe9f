"""Parts of the projections that turn things in boxes into tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Numbered(nn.Module):
    """A trained vector for every number, under the published name ``emb.weight``."""

    def __init__(self, numbers: int, width: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(numbers, width)


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Three linear layers with SiLU between them."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, outputs)
    )


def or_nothing(features: Tensor, masks: Tensor, nothing: Tensor) -> Tensor:
    """The features where the mask is 1, and the trained vector for "nothing here" where it is 0.

    Args:
        features: ``[k s d]``.
        masks: ``[k s]`` of 0 and 1.
        nothing: ``[d]``.
    """
    masks = masks.unsqueeze(-1)
    return features * masks + (1 - masks) * nothing


def packed(parts: Sequence[Tensor | None], slots: int, width: int, like: Tensor) -> Tensor:
    """Rows of different lengths, filled up with zeros.

    Args:
        parts: ``[n width]`` with n up to ``slots``; ``None`` for an empty one.
        slots: length of every row.
        width: of the vectors.
        like: number type and device of the result.

    Returns:
        ``[k slots width]``.

    Raises:
        ValueError: a part has another width.
    """
    rows = like.new_zeros(len(parts), slots, width)
    for row, part in zip(rows, parts, strict=True):
        if part is not None and part.shape[1] != width:
            raise ValueError(
                f"This control reads embeddings of width {width}; those of the condition have {part.shape[1]}. Encode "
                f"the phrases with the text encoder that the control was trained with."
            )
        if part is not None:
            row[: len(part)] = part.to(rows)
    return rows


def check_vectors(given: dict[str, Tensor], length: int) -> None:
    """Make sure that vectors and boxes belong to the same things.

    Args:
        given: ``[n d]`` by what they are; boxes have d = 4.
        length: n.

    Raises:
        ValueError: one is no matrix, or has another number of rows.
    """
    for name, tensor in given.items():
        if tensor.ndim != 2 or len(tensor) != length or (name.endswith("boxes") and tensor.shape[1] != 4):
            wanted = f"[{length} 4]" if name.endswith("boxes") else f"[{length} d]"
            raise ValueError(
                f"A condition needs one box and one embedding for every entry: {name} is {list(tensor.shape)}, "
                f"expected {wanted}."
            )


def masks_of(counts: Sequence[int], slots: int, like: Tensor) -> Tensor:
    """1 for slots that are taken, 0 for others ``[k slots]``."""
    places = torch.arange(slots, device=like.device)
    return (places < torch.tensor(counts, device=like.device)[:, None]).to(like.dtype)
