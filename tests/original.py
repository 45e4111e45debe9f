"""Models as the original codes wrote them, by the layouts of the package (``test_layouts`` proves those)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffusemble.experts.layouts.origin import Layout, Origin


def original(model: Any, layout: Layout, prefix: str = "") -> dict[str, Tensor]:
    """Every tensor of ``model`` by its name in the original code."""
    state: Mapping[str, Tensor] = model.state_dict()
    found: dict[str, list[tuple[Origin, Tensor]]] = {}
    for name, origin in layout(model, {key: tensor.shape for key, tensor in state.items()}).items():
        found.setdefault(prefix + origin.key, []).append((origin, state[name]))
    return {key: _whole(pieces) for key, pieces in found.items()}


def _whole(pieces: list[tuple[Origin, Tensor]]) -> Tensor:
    pieces.sort(key=lambda piece: piece[0].place)
    origin = pieces[0][0]
    # T5 has one tensor under two names; what is fused has rows.
    whole = torch.cat([tensor for _, tensor in pieces]) if origin.rows else pieces[0][1]
    if origin.swapped:
        whole = torch.cat(whole.chunk(2)[::-1])
    return (whole.T if origin.transposed else whole).contiguous()


def assert_equal(mine: Any, other: Any) -> None:
    """Every tensor of one model is in the other, bit for bit."""
    theirs = other.state_dict()
    assert mine.state_dict().keys() == theirs.keys()
    for key, tensor in mine.state_dict().items():
        assert torch.equal(tensor, theirs[key]), key
