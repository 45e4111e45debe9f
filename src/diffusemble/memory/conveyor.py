"""Two buffers through which the blocks' weights pass: one block computes while the next one arrives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from diffusemble.memory.bundle import Bundle
from diffusemble.memory.lanes import BUFFERS, lane_to
from diffusemble.memory.residence import Residence


class Conveyor:
    """Brings bundles to the compute device for the time they are used.

    Args:
        residence: counts the buffers while they exist: from the first use until ``stop``.
        size: bytes of the largest bundle.
        decoded: bytes of the largest decoded bundle, 0 if none is coded.
    """

    def __init__(self, residence: Residence, size: int, decoded: int = 0) -> None:
        self.residence, self.size = residence, size
        self.lane = lane_to(residence.device)
        self.buffers: list[Tensor] = []
        self.inside: list[Bundle | None] = [None] * BUFFERS
        self.latest = 0  # the buffer that was computed with last
        self.decoded = residence.take(decoded) if decoded else None

    def bring(self, bundle: Bundle) -> int:
        """Begin to copy ``bundle``, unless it is there or on its way; number of its buffer."""
        if bundle in self.inside:
            return self.inside.index(bundle)
        if not self.buffers:
            self.buffers = [self.residence.take(self.size) for _ in range(BUFFERS)]
            for number in range(BUFFERS):
                self.lane.done(number)  # whoever had their memory before may still compute
        number = 1 - self.latest
        self.inside[number] = None  # an interrupted copy must not look complete
        self.lane.bring(number, bundle.home, self.buffers[number][: bundle.bytes])
        self.inside[number] = bundle
        return number

    @contextmanager
    def used(self, bundle: Bundle, following: Bundle | None = None) -> Iterator[None]:
        """``bundle`` on the compute device; ``following`` is brought meanwhile. However the block ends, it rests."""
        number = self.bring(bundle)
        self.latest = number
        if following is not None:
            self.bring(following)
        self.lane.arrive(number)
        bundle.show(self.buffers[number], self.decoded)
        try:
            yield
        finally:
            bundle.rest()
            self.lane.done(number)

    @contextmanager
    def decoding(self, bundle: Bundle) -> Iterator[None]:
        """A coded ``bundle`` that rests on the compute device, decoded."""
        bundle.show(bundle.home, self.decoded)
        try:
            yield
        finally:
            bundle.rest()

    def stop(self) -> None:
        """Give the buffers back until the next use."""
        for number, flat in enumerate(self.buffers):
            self.lane.arrive(number)  # what gets this memory next must not be overwritten by a copy under way
            self.residence.give_back(flat)
        self.buffers, self.inside = [], [None] * BUFFERS
