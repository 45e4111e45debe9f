"""Recording what an aggregator decided while a picture was drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from diffusemble.aggregators.base import Combiner


@runtime_checkable
class Recorded(Protocol):
    """What is recorded: anything with an aggregator and named points, such as ``EnsembleDenoiser``."""

    aggregator: Combiner

    @property
    def points(self) -> tuple[str, ...]:
        """Names of the aggregation points in running order."""
        ...


@dataclass(frozen=True)
class AttentionMaps:
    """Recorded weights: ``maps[j]`` lists a float32 ``[b n h w]`` for every call at point j, named ``points[j]``."""

    points: tuple[str, ...]
    calls: tuple[list[Tensor], ...] = field(repr=False)

    def __getitem__(self, point: int) -> list[Tensor]:
        """Maps of one point, a tensor per call."""
        return self.calls[point]

    def __len__(self) -> int:
        """Number of points."""
        return len(self.calls)


@contextmanager
def record_attention(ensemble: Recorded, detach: bool = True) -> Iterator[AttentionMaps]:
    """Keep the maps of every aggregated point while the block runs; points that are not aggregated stay empty.

    Maps are copied to the CPU; without ``detach`` they stay where they are, with their gradients, to learn from them.
    """
    maps = AttentionMaps(ensemble.points, tuple([] for _ in ensemble.points))

    def keep(_: nn.Module, args: tuple[Any, ...], mixed: Any) -> None:
        kept = mixed.maps.float()
        maps.calls[args[0]].append(kept.detach().cpu().clone() if detach else kept)

    handle = ensemble.aggregator.register_forward_hook(keep)
    try:
        yield maps
    finally:
        handle.remove()
