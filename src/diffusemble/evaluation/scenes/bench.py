"""Systems draw scenes and are judged; every picture and score is computed once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from diffusemble.evaluation.pictures import from_bytes, to_bytes
from diffusemble.evaluation.scenes.config import SceneBenchConfig
from diffusemble.evaluation.scenes.drawing import SystemAtWork
from diffusemble.evaluation.scenes.systems import SceneSystem
from diffusemble.evaluation.statistics import Interval, paired_bootstrap
from diffusemble.evaluation.store import Arrays, Store, stored
from diffusemble.scene.config import SceneConfig

Tell = Callable[[float, str], None]
Judge = Callable[[Tensor, int], Mapping[str, float]]
"""Measures of a picture ``[3 h w]`` in [0, 1] of the scene of a number."""
Scenes = Callable[[SceneSystem], Sequence[SceneConfig]]
Array = NDArray[np.float64]

SYSTEMS = "systems"


@dataclass(frozen=True)
class SceneScores:
    """What the pictures of one system scored.

    Attributes:
        title: for tables.
        measures: by name, ``[n]``, one for each scene, 0 to 1, higher is better.
        calls: of denoisers for one picture, all members together.
        seconds: for one picture.
    """

    title: str
    measures: Mapping[str, Array]
    calls: float
    seconds: float

    def mean(self, measure: str, weights: Array | None = None) -> float:
        """Over all scenes, each with its weight."""
        return float(np.average(self.measures[measure], weights=weights))


def gap(own: SceneScores, other: SceneScores, measure: str, config: SceneBenchConfig) -> Interval:
    """Mean difference of a measure between two systems, paired by scene."""
    return paired_bootstrap(own.measures[measure] - other.measures[measure], None, config.bootstrap, seed=config.seed)


def measure_systems(
    config: SceneBenchConfig, scenes: Scenes, judge: Judge, store: Store, tell: Tell
) -> dict[str, SceneScores]:
    """Scores of every system by its name; what the store has is neither drawn nor judged again.

    Args:
        config: of the run.
        scenes: all scenes, with the members of a system.
        judge: of a picture.
        store: where everything is kept.
        tell: told how far it is, 0 to 1, and what is being done.
    """
    found = {}
    for number, system in enumerate(config.measured):
        title = system.title or system.name

        def told(share: float, number: int = number, title: str = title) -> None:
            tell((number + share) / len(config.measured), title)

        told(0.0)
        at_work = SystemAtWork(system, scenes(system), config.seed)
        found[system.name] = _Bench(at_work, judge, store, config.batch).measure(title, number, told)
    return found


def read_scene_scores(folder: str | Path, names: Sequence[str] = ()) -> dict[str, SceneScores]:
    """Scores that are kept in a folder, of all systems measured to the end or of ``names``.

    Raises:
        ValueError: the folder holds no scores, or none of a system.
    """
    store = stored(Path(folder))
    noted_of = {name: store.noted(f"{SYSTEMS}/{name}") for name in names or store.names(SYSTEMS)}
    found = {}
    for name in names or sorted(noted_of, key=lambda name: int(noted_of[name]["order"])):
        noted = noted_of[name]
        key, count = noted["key"], noted["count"]
        parts = [store.join(f"{what}/{key}", count) for what in ("scores", "cost")]
        found[name] = _scores(noted["title"], *parts)
    return found


class _Bench:
    def __init__(self, system: SystemAtWork, judge: Judge, store: Store, batch: int) -> None:
        self.system, self.judge, self.store, self.batch = system, judge, store, batch
        mark = json.dumps(system.made_of, sort_keys=True)
        self.key = f"{system.system.name}-{hashlib.sha256(mark.encode()).hexdigest()[:12]}"

    def measure(self, title: str, order: int, tell: Callable[[float], None]) -> SceneScores:
        """Draw and judge what the store does not have."""
        count = len(self.system.scenes)
        for start in range(0, count, self.batch):
            tell(start / count)
            self._piece(slice(start, min(start + self.batch, count)))
        noted = {"title": title, "key": self.key, "count": count, "order": order}
        self.store.note(f"{SYSTEMS}/{self.system.system.name}", noted)
        parts = [self.store.join(f"{what}/{self.key}", count) for what in ("scores", "cost")]
        return _scores(title, *parts)

    def _piece(self, part: slice) -> None:
        end = f"{self.key}-{part.start:05d}"
        images = self.store.get(f"images/{end}", lambda: self._draw(part))["images"]
        self.store.get(f"scores/{end}", lambda: self._judge(images, part))

    def _draw(self, part: slice) -> Arrays:
        drawn = self.system.draw(part)
        count = len(drawn.images)
        # A call of a denoiser is one for every picture of the batch; the time is shared.
        cost = {"calls": [float(sum(drawn.calls.values()))] * count, "seconds": [drawn.seconds / count] * count}
        self.store.get(f"cost/{self.key}-{part.start:05d}", lambda: {k: np.array(v) for k, v in cost.items()})
        return {"images": to_bytes(drawn.images)}

    def _judge(self, images: Any, part: slice) -> Arrays:
        rows = [self.judge(image, part.start + at) for at, image in enumerate(from_bytes(images))]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _scores(title: str, measures: Arrays, cost: Arrays) -> SceneScores:
    return SceneScores(title, measures, float(cost["calls"].mean()), float(cost["seconds"].mean()))
