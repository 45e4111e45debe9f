"""The weights of one block as a single stretch of bytes, so that one copy brings them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusemble.memory.coding import CODES, Coded, decode, encode, is_coded

ALIGNMENT = 256  # bytes; what CUDA's own allocator gives, so that kernels find the same alignment


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a stretch of bytes."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()

    def of(self, flat: Tensor) -> Tensor:
        """The tensor, as a view on the bytes ``flat [size]``."""
        part = flat[self.start : self.start + self.bytes].view(self.dtype)
        return part.as_strided(self.shape, self.stride, part.storage_offset())


@dataclass(frozen=True)
class Item:
    """One weight of a bundle.

    Attributes:
        weight: parameter or buffer whose ``data`` is exchanged.
        computed: its place among the weights as they compute.
        codes, scales: its places among the stored bytes, if it is stored in eight bits; else ``codes`` is the weight.
    """

    weight: Tensor
    computed: Place
    codes: Place
    scales: Place | None = None


@dataclass(frozen=True)
class Layout:
    """How weights lie in a bundle: ``bytes`` as stored; ``decoded`` bytes as they compute, 0 if that is the same."""

    items: tuple[Item, ...]
    bytes: int
    decoded: int


class Bundle:
    """Weights that are used together.

    At rest they lie in ``home``. Experts are frozen, so weights that leave the compute device are forgotten there and
    nothing is copied back.

    Packing copies; only ``rest`` lets go of the memory that the weights had, so that whoever is interrupted before has
    lost nothing.

    Args:
        weights: parameters and buffers; at rest every one is a view on ``home``.
        storage: ``"same"``, or one of ``CODES``.
        room: gives the memory where they rest, by its size; where they are by default.

    Attributes:
        bytes: size as stored.
        decoded_bytes: size of the decoded weights, which need a place of their own; 0 if they are stored as they are.
        home: where the weights are at rest, ``[bytes]``.
    """

    def __init__(
        self, weights: Sequence[Tensor], storage: str = "same", room: Callable[[int], Tensor] | None = None
    ) -> None:
        plan = layout(weights, storage)
        self.items, self.bytes, self.decoded_bytes = plan.items, plan.bytes, plan.decoded
        here = weights[0].device if weights else torch.device("cpu")
        self.home = room(self.bytes) if room else torch.empty(self.bytes, dtype=torch.uint8, device=here)
        for item in self.items:
            if item.scales is None:
                item.codes.of(self.home).copy_(item.weight.data)
            else:
                coded = encode(item.weight, storage)
                item.codes.of(self.home).copy_(coded.codes)
                item.scales.of(self.home).copy_(coded.scales)
        self.at_rest = self._at_rest()

    def _at_rest(self) -> list[Tensor]:
        def one(item: Item) -> Tensor:
            if item.scales is None:
                return item.codes.of(self.home)
            nothing = torch.full((1,), torch.nan, dtype=item.computed.dtype, device=self.home.device)
            return nothing.expand(item.computed.shape)

        return [one(item) for item in self.items]

    def rest(self) -> None:
        """Point the weights to ``home``; coded ones to NaN, so that nothing computes with codes by mistake."""
        for item, resting in zip(self.items, self.at_rest, strict=True):
            item.weight.data = resting

    def move(self, device: torch.device) -> None:
        """Rest elsewhere."""
        self.home = self.home.to(device)
        self.at_rest = self._at_rest()
        self.rest()

    def show(self, stored: Tensor, decoded: Tensor | None = None) -> None:
        """Point the weights to their copy ``stored [bytes]``; ``decoded`` takes coded ones as they compute."""
        for item in self.items:
            if decoded is None or self.decoded_bytes == 0:
                item.weight.data = item.codes.of(stored)
                continue
            weight = item.computed.of(decoded)
            if item.scales is None:
                weight.copy_(item.codes.of(stored))
            else:
                decode(Coded(item.codes.of(stored), item.scales.of(stored)), weight)
            item.weight.data = weight

    def unpack(self, device: torch.device) -> None:
        """Give every weight its own memory on ``device`` again; coded ones stay rounded."""
        decoded = torch.empty(self.decoded_bytes, dtype=torch.uint8, device=self.home.device)
        self.show(self.home, decoded)
        for item in self.items:
            item.weight.data = item.weight.data.to(device, copy=True)


def layout(weights: Iterable[Tensor], storage: str = "same") -> Layout:
    """Places for ``weights``; nothing is copied."""
    items, stored, computed = [], 0, 0
    for weight in weights:
        shape, stride = tuple(weight.shape), torch.empty_like(weight, device="meta").stride()
        coded = is_coded(weight, storage)
        whole = Place(computed, weight.dtype, shape, stride)
        codes = Place(stored, CODES[storage] if coded else weight.dtype, shape, stride)
        computed += aligned(whole.bytes)
        stored += aligned(codes.bytes)
        scales = Place(stored, torch.float32, shape[:1], (1,)) if coded else None
        stored += aligned(scales.bytes) if scales else 0
        items.append(Item(weight, whole, codes, scales))
    return Layout(tuple(items), stored, computed if any(item.scales for item in items) else 0)


def weights_of(modules: Iterable[nn.Module]) -> tuple[Tensor, ...]:
    """Parameters and buffers of some modules, each once."""
    found: dict[int, Tensor] = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            found.setdefault(id(tensor), tensor)
    return tuple(found.values())


def bytes_of(weights: Iterable[Tensor]) -> int:
    """Size of some tensors."""
    return sum(weight.numel() * weight.element_size() for weight in weights)


def aligned(size: int) -> int:
    """``size``, rounded up to what one tensor takes."""
    return -(-size // ALIGNMENT) * ALIGNMENT
