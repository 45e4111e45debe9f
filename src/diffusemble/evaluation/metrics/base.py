"""What every metric is: a number for each picture, or features whose sets are compared.

A row of ``registry.METRICS`` names a class with ``kind``, ``higher_is_better`` and ``load(weights, device)``:

* ``kind = "image"``: an instance is an ``ImageScorer``, or a ``PairScorer`` where ``against = "picture"``;
* ``kind = "set"``: an instance is a ``sets.SetMetric``; its ``net`` gives features, its ``state()`` accumulates them.

``weights`` is the folder that holds downloaded weights; without it only the hub's cache is searched. Nothing is ever
downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

Kind = Literal["image", "set"]
Against = Literal["prompt", "picture"]
Device = torch.device | str


class ImageScorer(Protocol):
    """One number per picture, from the picture and its own prompt."""

    kind: ClassVar[Kind]
    higher_is_better: ClassVar[bool]
    against: ClassVar[Against]

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores ``[b]`` (float32, on the CPU) of images ``[b 3 h w]`` in [0, 1]."""
        ...


class PairScorer(Protocol):
    """One number per picture, from the picture and a real picture of the same prompt."""

    kind: ClassVar[Kind]
    higher_is_better: ClassVar[bool]
    against: ClassVar[Against]

    def __call__(self, images: Tensor, references: Tensor) -> Tensor:
        """Scores ``[b]`` (float32, on the CPU) of images and references, each ``[b 3 h w]`` in [0, 1]."""
        ...


class FeatureNet(Protocol):
    """Features for statistics of sets."""

    def __call__(self, images: Tensor) -> Tensor:
        """Features ``[b d]`` of images ``[b 3 h w]`` in [0, 1]."""
        ...


class State(Protocol):
    """What a set metric remembers of a set of pictures; states of parts merge to the state of the whole."""

    @property
    def count(self) -> int:
        """Number of pictures seen."""
        ...

    def update(self, features: Tensor) -> None:
        """Add features ``[b d]``."""
        ...

    def merge(self, other: Any) -> None:
        """Add what another state of the same kind has seen."""
        ...

    def reduce(self) -> None:
        """Take together what all processes of ``torch.distributed`` have seen; nothing happens without it."""
        ...

    def compute(self, reference: Any = None) -> float:
        """The metric's value, against the state of a reference set where the metric has one."""
        ...


def load_metric(name: str, weights: Path | None = None, device: Device = "cpu") -> Any:
    """The metric of a row of ``registry.METRICS`` with its weights.

    Args:
        name: as in the table.
        weights: folder with downloaded weights; the hub's cache is searched as well.
        device: where the nets run.

    Raises:
        ValueError: unknown name.
        FileNotFoundError: weights are missing; the message says what to download and where to put it.
    """
    from diffusemble.registry import METRICS, lookup

    return lookup(METRICS, name, "metric").load(weights, device)


def score(scorer: Any, images: Tensor, prompts: Sequence[str], references: Tensor | None = None) -> Tensor:
    """Scores ``[b]`` by a metric of kind "image", whatever it compares with.

    Args:
        scorer: an ``ImageScorer`` or a ``PairScorer``.
        images: ``[b 3 h w]`` in [0, 1].
        prompts: of the images, in order.
        references: real pictures of the same prompts, ``[b 3 h w]``; only a ``PairScorer`` needs them.

    Raises:
        ValueError: a pair scorer without references, or numbers of images and prompts that differ.
    """
    if len(prompts) != len(images):
        raise ValueError(
            f"Every picture is scored with its own prompt; got {len(images)} pictures and {len(prompts)} prompts. "
            f"Give one prompt for each picture."
        )
    if scorer.against == "prompt":
        found: Tensor = scorer(images, prompts)
        return found
    if references is None:
        raise ValueError(
            f"{type(scorer).__name__} compares pictures with real ones, but none were given. "
            f"Give a real picture for each prompt, or leave this metric out."
        )
    against: Tensor = scorer(images, references)
    return against
