"""Weights are in one memory plan at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakSet

from torch import nn

_held: WeakSet[nn.Module] = WeakSet()


@contextmanager
def held(denoisers: Sequence[nn.Module]) -> Iterator[None]:
    """Nobody else may hold the weights of these denoisers, or of a part of one of them.

    Raises:
        ValueError: somebody does.
    """
    modules = [module for denoiser in denoisers for module in denoiser.modules()]
    if not _held.isdisjoint(modules):
        raise ValueError(
            "Another memory plan holds the weights of these denoisers. Release that placement first (or leave its "
            "`with`); further ensembles of the same experts can share it: placement.adopt(ensemble)."
        )
    _held.update(modules)
    try:
        yield
    finally:
        _held.difference_update(modules)
