"""Several processes that share one evaluation: each does its share, and all meet in the folder of scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from accelerate.state import PartialState

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # of the processes that are done first


def _nobody() -> None:
    """There is nobody to wait for."""


@dataclass(frozen=True)
class Shards:
    """Place of this process among ``count``; ``wait`` returns when all have come that far."""

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = _nobody

    @property
    def main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def mine(self, pieces: Sequence[T]) -> Sequence[T]:
        """Every ``count``-th piece; what a piece is does not depend on the number of processes."""
        return pieces[self.rank :: self.count]


ALONE = Shards()


@contextmanager
def launched(cpu: bool = False) -> Iterator[Shards]:
    """The processes of ``accelerate launch`` or ``torchrun``; without a launcher, this one alone."""
    state = PartialState(cpu=cpu, timeout=PATIENCE)
    try:
        yield Shards(state.process_index, state.num_processes, state.wait_for_everyone)
    finally:
        if state.num_processes > 1:
            state.destroy_process_group()
        PartialState._reset_state()
