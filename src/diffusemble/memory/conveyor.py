"""Two buffers through which the blocks' weights pass: one block computes while the next one arrives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor

from diffusemble.memory.bundle import Bundle
from diffusemble.memory.lanes import lane_to
from diffusemble.memory.plan import BUFFERS
from diffusemble.memory.residence import Residence


class Conveyor:
    """Brings bundles to the compute device for the time they are used.

    Args:
        residence: counts the buffers while they exist: from the first use until ``stop``.
        size: bytes of the largest bundle.
        decoded: bytes of the largest decoded bundle, 0 if none is coded; they are there until ``close``.

    Attributes:
        brought: bytes that were copied up to now.
    """

    def __init__(self, residence: Residence, size: int, decoded: int = 0) -> None:
        self.residence, self.size, self.decoded_size = residence, size, decoded
        self.lane = lane_to(residence.device)
        self.buffers: list[Tensor] = []
        self.inside: list[Bundle | None] = [None] * BUFFERS
        self.latest = 0  # the buffer that was computed with last
        self.decoded: Tensor | None = None
        self.brought = 0

    def bring(self, bundle: Bundle) -> int:
        """Begin to copy ``bundle``, unless it is there or on its way; number of its buffer."""
        if bundle in self.inside:
            return self.inside.index(bundle)
        while len(self.buffers) < BUFFERS:
            self.buffers.append(self.residence.take(self.size))
            self.lane.done(len(self.buffers) - 1)  # whoever had their memory before may still compute
        number = 1 - self.latest
        self.inside[number] = None  # an interrupted copy must not look complete
        self.lane.bring(number, bundle.home, self.buffers[number][: bundle.bytes])
        self.inside[number] = bundle
        self.brought += bundle.bytes
        return number

    @contextmanager
    def used(self, bundle: Bundle, following: Bundle | None = None) -> Iterator[None]:
        """``bundle`` on the compute device; ``following`` is brought meanwhile. However the block ends, it rests."""
        number = self.bring(bundle)
        self.latest = number
        if following is not None:
            self.bring(following)
        self.lane.arrive(number)
        with self._shown(bundle, self.buffers[number]):
            try:
                yield
            finally:
                self.lane.done(number)

    def decoding(self, bundle: Bundle) -> AbstractContextManager[None]:
        """A coded ``bundle`` that rests on the compute device, decoded."""
        return self._shown(bundle, bundle.home)

    def stop(self) -> None:
        """Give the buffers back until the next use."""
        if self.buffers:
            self.lane.settle()  # what gets this memory next must not be overwritten by a copy under way
        for flat in self.buffers:
            self.residence.give_back(flat)
        self.buffers, self.inside = [], [None] * BUFFERS

    def close(self) -> None:
        """Give everything back."""
        self.stop()
        if self.decoded is not None:
            self.residence.give_back(self.decoded)
            self.decoded = None

    @contextmanager
    def _shown(self, bundle: Bundle, stored: Tensor) -> Iterator[None]:
        if self.decoded is None and bundle.decoded_bytes:
            self.decoded = self.residence.take(self.decoded_size)
        try:
            bundle.show(stored, self.decoded)
            yield
        finally:
            bundle.rest()
