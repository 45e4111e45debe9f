"""Text encoders and the VAE: on the compute device only while they are called, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffusemble.memory.bundle import bytes_of, weights_of
from diffusemble.memory.residence import Residence


@dataclass(frozen=True)
class Guest:
    """A weight that is on the compute device for a while: where it was, and what was put in its place."""

    weight: Tensor
    home: Tensor
    copy: Tensor


class Visitors:
    """Groups of modules whose weights come when one of their modules is called, and go when another group's is.

    Args:
        residence: counts them.
        groups: modules whose own weights come together; a module that belongs to a group of its own inside another
            one's module is not part of the outer group.
        before: called before a group comes.
    """

    def __init__(
        self, residence: Residence, groups: Iterable[Sequence[nn.Module]], before: Callable[[], None] = lambda: None
    ) -> None:
        self.residence, self.before = residence, before
        self.guests: list[Guest] = []
        self.bytes = 0
        self.inside: int | None = None
        self.handles: list[RemovableHandle] = []
        self.groups = [tuple(group) for group in groups]
        for number, group in enumerate(self.groups):
            for module in group:
                self.handles.append(module.register_forward_pre_hook(self._opener(number)))

    def leave(self, *_: Any) -> None:
        """Nobody is on the compute device any more."""
        for guest in self.guests:
            changed = guest.weight.data_ptr() != guest.copy.data_ptr()  # a pipeline that widens its VAE does that
            guest.weight.data = guest.weight.data.to(guest.home.device) if changed else guest.home
        self.residence.add(-self.bytes)
        self.guests, self.bytes, self.inside = [], 0, None

    def remove(self) -> None:
        """Let the modules be as they were."""
        self.leave()
        for handle in self.handles:
            handle.remove()

    def open(self, number: int) -> None:
        """Let group ``number`` in; whoever is inside leaves."""
        if self.inside != number:
            self.leave()
            self.before()
            self._enter(number)

    def _opener(self, number: int) -> Any:
        return lambda *_: self.open(number)

    def _enter(self, number: int) -> None:
        weights = own_weights(self.groups[number])
        self.inside, self.bytes = number, bytes_of(weights)
        self.residence.add(self.bytes)
        for weight in weights:
            home = weight.data
            with torch.inference_mode(False):
                copy = home.to(self.residence.device, copy=True)
            weight.data = copy
            self.guests.append(Guest(weight, home, copy))


def own_weights(modules: Iterable[nn.Module]) -> tuple[Tensor, ...]:
    """Parameters and buffers that belong to ``modules`` themselves, not to modules inside them; each once."""
    found: dict[int, Tensor] = {}
    for module in modules:
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                found.setdefault(id(tensor), tensor)
    return tuple(found.values())


def whole(module: nn.Module) -> list[list[nn.Module]]:
    """One group: everything in ``module``."""
    return [list(module.modules())]


def layer_by_layer(module: nn.Module) -> list[list[nn.Module]]:
    """A group for each entry of the largest ``ModuleList`` in ``module``, and one for what is outside it.

    A text encoder of 10 GB then needs the room of one of its layers, or of its word embeddings.
    """
    lists = [one for one in module.modules() if isinstance(one, nn.ModuleList)]
    if not lists:
        return whole(module)
    layers = max(lists, key=lambda one: bytes_of(weights_of(one)))
    inner = [list(layer.modules()) for layer in layers]
    taken = {id(part) for group in inner for part in group}
    return [[part for part in module.modules() if id(part) not in taken], *inner]
