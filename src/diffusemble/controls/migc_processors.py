"""MIGC in a U-Net's cross-attentions: what stands in a processor's place for one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffusemble.controls.attachment import Processor, processor_of_rows
from diffusemble.controls.base import Call
from diffusemble.controls.instances import MigcCondition
from diffusemble.controls.migc_layers import Instances, MigcLayer
from diffusemble.controls.migc_masks import Masks, grid_of

FUSED_WEIGHT = 10.0  # of an instance's text in its box, where the prompt weighs 1
_TINY = 1e-6


@dataclass(frozen=True)
class Placed:
    """The pictures of a call that have instances.

    Attributes:
        conditions: one per picture.
        instances: of all pictures; their slots are those in the first layer.
        slots: ``[1 n]``, or one row for every layer.
        latents: height and width.
    """

    conditions: tuple[MigcCondition, ...]
    instances: Instances
    slots: Tensor
    latents: tuple[int, int]

    def masks(self, places: int) -> Masks:
        """Masks on the grid of features with so many places."""
        grid, device = grid_of(self.latents, places), self.slots.device
        each = [one.masks(self.latents, grid, device) for one in self.conditions]
        return Masks(torch.cat([one.instances for one in each]), torch.cat([one.rest for one in each]), grid)

    def together(self, places: int) -> Tensor:
        """Which of so many places see each other ``[p 1 l l]``."""
        grid, device = grid_of(self.latents, places), self.slots.device
        return torch.cat([one.together(self.latents, grid, device) for one in self.conditions])

    def at(self, layer: int) -> Instances:
        """The instances with the slots that they take in a layer."""
        return replace(self.instances, slots=self.slots[layer % len(self.slots)])


def place(conditions: Sequence[MigcCondition | None], call: Call) -> Placed:
    """Gather the instances of every picture of a call; at least one must have some.

    Args:
        conditions: one per picture; ``None`` or one without instances leaves a picture alone.
        call: what the U-Net is called with.
    """
    first = len(call.sample) - len(conditions)  # the unconditional half comes before
    told = [(first + row, one) for row, one in enumerate(conditions) if one is not None and len(one.boxes)]
    of = tuple(one for _, one in told)
    put = partial(torch.Tensor.to, device=call.sample.device)
    rows = max(len(one.slot_rows()) for one in of)
    slots = put(torch.cat([one.slot_rows().expand(rows, -1) for one in of], dim=1))
    instances = Instances(
        rows=put(torch.tensor([row for row, _ in told])),
        owner=put(torch.cat([torch.full((len(one.boxes),), index) for index, one in enumerate(of)])),
        text=torch.cat([one.text.to(call.text) for one in of]),
        pooled=torch.cat([put(one.pooled) for one in of]),
        boxes=torch.cat([put(one.boxes) for one in of]),
        slots=slots[0],
        scales=put(torch.cat([one.scale_rows() for one in of])),
    )
    height, width = call.sample.shape[-2:]
    return Placed(of, instances, slots, (height, width))


class MigcProcessor:
    """A cross-attention with MIGC, in the rows that have instances.

    Args:
        layer: MIGC's weights at this cross-attention.
        index: which of MIGC's layers this is, in running order.
        placed: the instances.
        inner: the attention's own processor, which reads prompt and phrases.
    """

    def __init__(self, layer: MigcLayer, index: int, placed: Placed, inner: Processor) -> None:
        self.layer, self.index, self.placed, self.inner = layer, index, placed, inner

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Attention output ``[b l c]``."""
        plain = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask)
        instances, dtype = self.placed.at(self.index), self.layer.norm.weight.dtype
        own = _read_phrases(self.inner, attn, hidden_states, instances)
        parts = (part.to(dtype) for part in (hidden_states[instances.rows], plain[instances.rows], own))
        places = hidden_states.shape[1]
        mixed = self.layer(*parts, instances, self.placed.masks(places), self.placed.together(places))
        return plain.index_copy(0, instances.rows, mixed.to(plain.dtype))


class FusedProcessor:
    """A cross-attention that weighs prompt and phrases by the masks, without trained weights.

    Args:
        placed: the instances.
        inner: the attention's own processor.
    """

    def __init__(self, placed: Placed, inner: Processor) -> None:
        self.placed, self.inner = placed, inner

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Attention output ``[b l c]``."""
        plain = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask)
        instances = self.placed.instances
        own = _read_phrases(self.inner, attn, hidden_states, instances)
        mixed = fuse(plain[instances.rows], own, self.placed.masks(hidden_states.shape[1]).instances, instances.owner)
        return plain.index_copy(0, instances.rows, mixed)


def fuse(shared: Tensor, own: Tensor, masks: Tensor, owner: Tensor) -> Tensor:
    """Weighted mean of what the prompt and the phrases give: the prompt weighs 1, a phrase 10 in its box.

    Args:
        shared: ``[p l c]`` for the prompt.
        own: ``[n l c]`` for the phrases.
        masks: ``[n l 1]``.
        owner: ``[n]``, which of the p pictures an instance belongs to.
    """
    weights = FUSED_WEIGHT * masks.to(own.dtype)
    total = torch.ones_like(shared[:, :, :1]).index_add(0, owner, weights)
    return shared.index_add(0, owner, weights * own) / (total + _TINY)


def _read_phrases(inner: Processor, attn: Any, hidden: Tensor, instances: Instances) -> Tensor:
    rows = instances.rows[instances.owner]
    return processor_of_rows(inner, rows)(attn, hidden[rows], instances.text)
