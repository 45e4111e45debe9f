"""One tensor of a diffusers model, as a piece of a tensor in the layout of the original code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Origins = Mapping[str, "Origin"]
"""For every tensor of a diffusers model, where it lies."""
Shapes = Mapping[str, Sequence[int]]
"""Of every tensor of a model, by name."""
Layout = Callable[[Any, Shapes], dict[str, "Origin"]]
"""From a model and the shapes of its tensors to where they lie."""
Rule = tuple[str, str]


@dataclass(frozen=True)
class Fused:
    """Modules of a model that are one module in the file.

    Attributes:
        parent: regular expression of what stands before their names.
        parts: their names, in the order of their rows.
        whole: the one module's name, in the place of theirs.
    """

    parent: str
    parts: tuple[str, ...]
    whole: str

    def find(self, name: str, shapes: Shapes) -> tuple[str, tuple[int, ...], int] | None:
        """Name of the whole, rows of all parts, and the place of tensor ``name`` among them, if it is a part."""
        parts = "|".join(re.escape(part) for part in self.parts)
        found = re.fullmatch(rf"({self.parent})({parts})\.(weight|bias)", name)
        if found is None:
            return None
        before, end = found[1], found[found.lastindex or 0]
        part = name.removeprefix(before).removesuffix(f".{end}")
        rows = tuple(int(shapes[f"{before}{one}.{end}"][0]) for one in self.parts)
        return f"{before}{self.whole}.{end}", rows, self.parts.index(part)


@dataclass(frozen=True)
class Origin:
    """Where a tensor lies.

    Attributes:
        key: name of the tensor in the file.
        rows: where several tensors are one in the file (queries, keys and values): rows of each.
        place: which of them this one is.
        swapped: its halves stand in the other order (shift and scale of a modulation).
        transposed: it is a matrix the other way round.
    """

    key: str
    rows: tuple[int, ...] = ()
    place: int = 0
    swapped: bool = False
    transposed: bool = False

    def fits(self, found: Sequence[int], wanted: Sequence[int]) -> bool:
        """Whether a tensor in the file with shape ``found`` gives one of shape ``wanted``."""
        whole = (sum(self.rows), *wanted[1:]) if self.rows else tuple(wanted)
        if self.transposed:
            whole = whole[::-1]
        return _essential(found) == _essential(whole)

    def take(self, whole: Tensor, shape: Sequence[int]) -> Tensor:
        """This tensor of ``shape``, out of ``whole`` as the file has it."""
        part = whole
        if self.rows:
            start = sum(self.rows[: self.place])
            part = whole[start : start + self.rows[self.place]]
        if self.swapped:
            part = torch.cat(part.chunk(2)[::-1])
        if self.transposed:
            part = part.T
        return part.reshape(tuple(shape))  # 1x1 convolutions and linear layers are the same


def follow(
    shapes: Shapes, rules: Iterable[Rule], fused: Iterable[Fused] = (), swapped: str | None = None
) -> dict[str, Origin]:
    """Origins of tensors whose names in the file follow from rules.

    Args:
        shapes: of all tensors of the model.
        rules: regular expressions and what stands in their place, applied in order.
        fused: where several modules of the model are one in the file; applied before the rules.
        swapped: regular expression of the names whose halves change places.
    """
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    found = {}
    for name in shapes:
        key, rows, place = next(filter(None, (one.find(name, shapes) for one in fused)), (name, (), 0))
        for pattern, replacement in compiled:
            key = pattern.sub(replacement, key)
        found[name] = Origin(key, rows, place, swapped=bool(swapped and re.match(swapped, name)))
    return found


def same(model: Any, shapes: Shapes) -> dict[str, Origin]:
    """The layout of diffusers and transformers themselves."""
    return {name: Origin(name) for name in shapes}


def _essential(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without ones at its end."""
    kept = list(shape)
    while kept and kept[-1] == 1:
        kept.pop()
    return tuple(kept)
