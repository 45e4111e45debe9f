"""Scores of every system, picture by picture, as they are kept: reading them needs no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusemble.evaluation.pictures import Row
from diffusemble.evaluation.store import Store

Array = NDArray[Any]
SPLITS = ("pair", "concept")
REAL, DECODED, REFERENCE = "real", "decoded", "reference"
BENCH, SYSTEMS = "bench", "systems"
MATCH, RIGHT = "prompt match", "right thing"
KINDS = ("expert", "inside", "control", "ensemble", "base")


@dataclass(frozen=True)
class Drawn:
    """One set of pictures for the same captions.

    Attributes:
        images: uint8 ``[n h w 3]``.
        features: ``[n 1280]`` by net.
        scores: ``[n]`` by what is scored, higher is better: ``prompt match`` is scale × cosine with the own caption,
            ``right thing`` is 1 where the own caption is the best of all concepts, 0 elsewhere; others by the names of
            ``registry.METRICS``.
    """

    images: Array
    features: Mapping[str, Array]
    scores: Mapping[str, Array]


@dataclass(frozen=True)
class Scores:
    """Everything measured.

    Attributes:
        systems: name, title and kind of each, in order.
        rows: held-out pictures by split.
        losses: ``[n t]`` by split and system.
        weights: the ensemble's mean weight of each expert, ``[n t k e]``, on the pairs; None without the ensemble.
        experts: names of the e experts.
        grounds: what each of them was made for, as values of columns of the pictures.
        candidates: number of concepts.
        jobs: captions drawn, one row each.
        drawn: by system, and under ``"real"`` the held-out pictures themselves, under ``"decoded"`` the same after the
            autoencoder.
        reference: features of the training pictures by net.
    """

    systems: tuple[tuple[str, str, str], ...]
    rows: Mapping[str, tuple[Row, ...]]
    losses: Mapping[str, Mapping[str, Array]]
    weights: Array | None
    experts: tuple[str, ...]
    grounds: Mapping[str, Mapping[str, Sequence[str]]]
    candidates: int
    jobs: tuple[Row, ...]
    drawn: Mapping[str, Drawn]
    reference: Mapping[str, Array]


@dataclass(frozen=True)
class Layout:
    """What a store is about: pictures by split, jobs, experts with their grounds, number of concepts."""

    rows: Mapping[str, tuple[Row, ...]]
    jobs: tuple[Row, ...]
    experts: tuple[str, ...]
    grounds: Mapping[str, Mapping[str, Sequence[str]]]
    candidates: int

    def write(self, store: Store) -> None:
        """Keep it."""
        store.note(
            BENCH,
            {
                "rows": {split: [asdict(row) for row in rows] for split, rows in self.rows.items()},
                "jobs": [asdict(row) for row in self.jobs],
                "experts": list(self.experts),
                "grounds": {name: dict(ground) for name, ground in self.grounds.items()},
                "candidates": self.candidates,
            },
        )

    @classmethod
    def read(cls, store: Store) -> Layout:
        """What ``write`` kept.

        Raises:
            ValueError: nothing was kept.
        """
        found = store.noted(BENCH)
        rows = {split: tuple(Row(**row) for row in rows) for split, rows in found["rows"].items()}
        jobs = tuple(Row(**row) for row in found["jobs"])
        return cls(rows, jobs, tuple(found["experts"]), found["grounds"], found["candidates"])


def read_scores(store: Store, names: Sequence[str] = ()) -> Scores:
    """Everything that is kept of these systems; of all that were measured to the end, if no names are given.

    Raises:
        ValueError: a system was not measured, or not to the end; the message says which.
    """
    layout = Layout.read(store)
    systems = tuple(one for one in measured(store, names) if names or store.has(f"scores/{one[0]}"))
    if not systems:
        raise ValueError(f"{store.folder} holds no system that was measured to the end. Run `diffusemble evaluate`.")
    drawn = {name: _drawn(store, name, len(layout.jobs)) for name, _, _ in systems}
    drawn |= {name: _drawn(store, name, len(layout.jobs)) for name in (REAL, DECODED)}
    learned = any(name == "ensemble" for name, _, _ in systems)
    return Scores(
        systems=systems,
        rows=layout.rows,
        losses={
            split: {name: store.join(f"losses/{split}/{name}", len(rows))["losses"] for name, _, _ in systems}
            for split, rows in layout.rows.items()
        },
        weights=store.join("weights/weights", len(layout.rows["pair"]))["weights"] if learned else None,
        experts=layout.experts,
        grounds=layout.grounds,
        candidates=layout.candidates,
        jobs=layout.jobs,
        drawn=drawn,
        reference=store.read(f"features/{REFERENCE}"),
    )


def measured(store: Store, names: Sequence[str] = ()) -> tuple[tuple[str, str, str], ...]:
    """Name, title and kind of the systems a store has begun to measure, in order; of ``names`` alone if given.

    Raises:
        ValueError: there is no system of a name.
    """
    there = store.names(SYSTEMS)
    for name in names:
        if name not in there:
            raise ValueError(
                f"{store.folder} holds no scores of {name!r}; it has {', '.join(there) or 'none'}. Measure it with "
                f"`diffusemble evaluate systems=[{name}] out={store.folder}`."
            )
    found = {name: store.noted(f"{SYSTEMS}/{name}") for name in (names or there)}
    order = list(found) if names else sorted(found, key=lambda name: (_rank(found[name]["kind"]), found[name]["order"]))
    return tuple((name, found[name]["title"], found[name]["kind"]) for name in order)


def _rank(kind: str) -> int:
    return KINDS.index(kind) if kind in KINDS else len(KINDS)


def _drawn(store: Store, name: str, count: int) -> Drawn:
    images = store.join(f"images/{name}", count)["images"]
    scores = {key: values.astype(np.float64) for key, values in store.read(f"scores/{name}").items()}
    for folder in sorted((store.folder / "scores").glob("*/")):
        key = f"scores/{folder.name}/{name}"
        if store.has(key):
            scores[folder.name] = store.read(key)["scores"].astype(np.float64)
    return Drawn(images, store.read(f"features/{name}"), scores)
