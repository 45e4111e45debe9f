"""The tensors of n models side by side, read when they are asked for, and how much of each is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from diffusemble.merging.blockwise import block_ratios, complement, parse_weights, slot_of
from diffusemble.merging.config import BlockWeights
from diffusemble.merging.family import family_of
from diffusemble.merging.methods import Method, Tensors
from diffusemble.merging.models import Model, Weights, check_tensors

Amounts = Callable[[str], Sequence[float]]
"""From a tensor's full name (see ``Part.full``) to what ``Method.merge`` takes."""


class Reading(Sequence[Tensor]):
    """One tensor of every model, in one number type, read each time it is asked for."""

    def __init__(self, models: Sequence[Weights], key: str, dtype: torch.dtype) -> None:
        self._models = models
        self._key = key
        self._dtype = dtype

    def __len__(self) -> int:
        return len(self._models)

    @overload
    def __getitem__(self, place: int) -> Tensor: ...

    @overload
    def __getitem__(self, place: slice) -> Reading: ...

    def __getitem__(self, place: int | slice) -> Tensor | Reading:
        if isinstance(place, slice):
            return Reading(self._models[place], self._key, self._dtype)
        return self._models[place].read(self._key).to(self._dtype)


@dataclass(frozen=True)
class Part:
    """One part of the pipeline (``"unet"``), or a whole file (``""``), of all models.

    Attributes:
        name: of the part.
        experts: its weights in every expert.
        base: those in the model that differences are taken from.
    """

    name: str
    experts: tuple[Weights, ...]
    base: Weights | None

    def full(self, key: str) -> str:
        """A tensor's name with the part's in front."""
        return f"{self.name}.{key}" if self.name else key

    def tensors(self, key: str) -> Tensors:
        """A tensor of all models, in twice their precision: what is copied comes out bit for bit."""
        models = self.experts if self.base is None else (*self.experts, self.base)
        wide = any(model.forms[key].dtype.itemsize >= torch.float32.itemsize for model in models)
        dtype = torch.float64 if wide else torch.float32
        base = None if self.base is None else self.base.read(key).to(dtype)
        return Tensors(self.full(key), Reading(self.experts, key, dtype), base)

    def fractions(self) -> Iterator[Tensors]:
        """All that can be merged, one after the other: tensors of counts are not."""
        for key, form in self.experts[0].forms.items():
            if form.dtype.is_floating_point:
                yield self.tensors(key)

    @property
    def size(self) -> int:
        """Bytes of one model."""
        return sum(form.size for form in self.experts[0].forms.values())


def open_parts(models: Sequence[Model], experts: int) -> list[Part]:
    """All parts of all models.

    Args:
        models: the experts, and behind them the base if there is one.
        experts: how many there are.

    Raises:
        ValueError: their tensors do not fit.
    """
    names, parts = [model.name for model in models], []
    for part in models[0].parts:
        weights = [Weights(model.parts[part]) for model in models]
        check_tensors(names, weights, part)
        parts.append(Part(part, tuple(weights[:experts]), weights[experts] if weights[experts:] else None))
    return parts


def amounts_of(method: Method, blocks: Sequence[BlockWeights] | None, parts: Sequence[Part]) -> Amounts:
    """How much of every expert goes into every tensor.

    Args:
        method: whose own amounts hold where there are no block weights.
        blocks: weights per block, for every expert or all but the first; shares are normalised, and the first of
            n experts gets what n − 1 others leave.
        parts: of the models.

    Raises:
        ValueError: the method takes no block weights, or they do not fit.
    """
    if blocks is None:
        return lambda key: method.amounts
    further, title = method.count - 1, type(method).__name__
    fitting = {"shares": (further, method.count), "ratios": (further,)}.get(method.weighs or "", ())
    if not fitting:
        raise ValueError(f"{title} takes no block weights. Leave blocks out, or choose the method weighted.")
    if len(blocks) not in fitting:
        raise ValueError(
            f"Block weights for {title} of {method.count} experts are {' or '.join(map(str, fitting))} sets; got "
            f"{len(blocks)}. Shares are given for every expert or for all but the first, ratios for all but the first."
        )
    family = family_of(part.full(key) for part in parts for key in part.experts[0].forms)
    weights = [parse_weights(one, family) for one in blocks]
    if method.weighs == "ratios":
        return lambda key: tuple(one[slot_of(key, family)] for one in weights)
    if len(weights) == further:
        weights.insert(0, complement({slot: sum(one[slot] for one in weights) for slot in weights[0]}))
    return lambda key: block_ratios(weights, slot_of(key, family))
