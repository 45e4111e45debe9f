"""Text encoders, ControlNets, the VAE: on the compute device only while they are called, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

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
        staying: weights that are on the compute device anyway.
        denoisers: groups before all others, each let in when its denoiser itself is called: of an ensemble that is one
            of them, nobody calls the experts.
    """

    def __init__(
        self,
        residence: Residence,
        groups: Iterable[Sequence[nn.Module]],
        before: Callable[[], None] = lambda: None,
        staying: Iterable[Tensor] = (),
        denoisers: Sequence[nn.Module] = (),
    ) -> None:
        self.residence, self.before = residence, before
        others = [tuple(group) for group in groups]
        self.groups = [*(tuple(one.modules()) for one in denoisers), *others]
        self.drawing = range(len(denoisers))
        self.staying = {id(weight) for weight in staying}
        self.guests: list[Guest] = []
        self.bytes = 0
        self.inside: int | None = None
        self.handles = [
            module.register_forward_pre_hook(self._opener(number))
            for number, doors in enumerate([*((one,) for one in denoisers), *others])
            for module in doors
            if any(id(weight) not in self.staying for weight in weights_of([module]))  # else nothing has to come
        ]

    @torch.inference_mode(False)  # weights outlive the pass that moves them
    def leave(self) -> None:
        """Nobody is on the compute device any more."""
        self.inside = None
        while self.guests:
            guest = self.guests[-1]
            changed = guest.weight.data_ptr() != guest.copy.data_ptr()  # a pipeline that widens its VAE does that
            guest.weight.data = guest.weight.data.to(guest.home.device) if changed else guest.home
            self.guests.pop()
        self.residence.add(-self.bytes)
        self.bytes = 0

    def draw(self) -> None:
        """Whoever read the prompt or computed before the denoisers leaves; a denoiser may stay."""
        if self.inside not in self.drawing:
            self.leave()

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
            self.inside = number  # not before: who was interrupted on the way in enters anew

    def _opener(self, number: int) -> Any:
        return lambda *_: self.open(number)

    @torch.inference_mode(False)
    def _enter(self, number: int) -> None:
        for weight in own_weights(self.groups[number]):
            if id(weight) in self.staying:
                continue
            size = bytes_of([weight])
            self.residence.add(size)
            self.bytes += size
            home = weight.data
            # On the stream that will compute. What comes whole rests in pageable memory, so the host waits for it.
            copy = home.to(self.residence.device, copy=True)
            self.guests.append(Guest(weight, home, copy))
            weight.data = copy


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


@contextmanager
def computing_on(module: Any, device: torch.device) -> Iterator[None]:
    """Tell diffusers' pipelines where ``module`` computes: they ask before they call it, while it rests elsewhere."""
    before = module.__dict__.get("_hf_hook")
    module._hf_hook = SimpleNamespace(execution_device=device)
    try:
        yield
    finally:
        del module._hf_hook
        if before is not None:
            module._hf_hook = before
