"""Scores of drawn pictures by any metrics: measured in pieces by several processes, and read again without a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusemble.evaluation.config import PicturesConfig
from diffusemble.evaluation.gallery import Gallery, Job, read_picture
from diffusemble.evaluation.metrics.base import load_metric, score
from diffusemble.evaluation.prompts import Prompt
from diffusemble.evaluation.shards import Shards
from diffusemble.evaluation.store import Arrays, Store
from diffusemble.evaluation.stored import BENCH, REFERENCE, SYSTEMS, Array, measured
from diffusemble.evaluation.systems import System
from diffusemble.registry import METRICS

CHUNK = 64  # pictures whose scores are kept together


@dataclass(frozen=True)
class PictureScores:
    """Everything measured.

    Attributes:
        systems: name, title and kind of each, in order.
        prompts: what was drawn.
        jobs: which prompt each picture shows, and in which repeat.
        images: ``[n]`` by metric of single pictures and system.
        sets: ``[repeats]`` by metric of sets and system.
        features: ``[n d]`` by kernel distance and system, and under ``"reference"`` those it compares with.
        higher_is_better: by metric.
    """

    systems: tuple[tuple[str, str, str], ...]
    prompts: tuple[Prompt, ...]
    jobs: tuple[Job, ...]
    images: Mapping[str, Mapping[str, Array]]
    sets: Mapping[str, Mapping[str, Array]]
    features: Mapping[str, Mapping[str, Array]]
    higher_is_better: Mapping[str, bool]


@dataclass(frozen=True)
class PictureBench:
    """Draws and scores; whatever is there is not made again.

    Attributes:
        gallery: the pictures.
        systems: what is compared.
        store: where scores are kept.
        shards: the processes that share the work.
        device: where the metrics' nets run.
    """

    gallery: Gallery
    systems: tuple[System, ...]
    store: Store
    shards: Shards
    device: torch.device

    @property
    def config(self) -> PicturesConfig:
        """Of the run."""
        return self.gallery.config

    def check(self) -> None:
        """Miss what is not there before anything takes time.

        Raises:
            ValueError: a metric needs pictures that were not given.
            FileNotFoundError: a metric's weights are missing.
        """
        for name in self.config.metrics:
            cls = METRICS[name].load()
            if cls.kind == "set" and cls.needs_reference:
                names = "|".join(str(file.name) for file in self.gallery.references())
                self.store.note(REFERENCE, {}, {"files": hashlib.sha256(names.encode()).hexdigest()[:16]})
            elif cls.kind == "image" and cls.against == "picture":
                if not self.config.originals:
                    raise ValueError(
                        f"The metric {name!r} compares with the real picture of each prompt. Give originals=FOLDER and "
                        f"file_column, or leave the metric out (metrics=[...])."
                    )
                self.gallery.originals(self.gallery.jobs[:1])
            self._load(name, "cpu")

    def measure(self, tell: Callable[[float, str], None]) -> PictureScores:
        """Draw, score, and read all of it."""
        self._note()
        self.gallery.draw(self.systems, self.shards, tell)
        self.shards.wait()
        for name in self.config.metrics:
            metric = self._load(name, self.device)
            tell(0.0, f"scoring: {METRICS[name].title}")
            if metric.kind == "image":
                self._work(self._image_pieces(name, metric))
            else:
                self._work(self._feature_pieces(metric))
                self._work(self._set_pieces(name, metric))
        return read_picture_scores(self.store, self.config, [system.name for system in self.systems])

    def _load(self, name: str, device: torch.device | str) -> Any:
        return load_metric(name, Path(self.config.weights) if self.config.weights else None, device)

    def _note(self) -> None:
        self.store.note(BENCH, {"prompts": [asdict(prompt) for prompt in self.gallery.prompts]})
        for order, system in enumerate(self.systems):
            settings = {key: str(value) for key, value in system.settings.items()}
            values = {"title": system.title, "kind": system.kind, "order": order}
            self.store.note(f"{SYSTEMS}/{system.name}", values, {"settings": settings})

    def _work(self, pieces: Iterator[tuple[str, Callable[[], Arrays]]]) -> None:
        for key, make in self.shards.mine(list(pieces)):
            self.store.get(key, make)
        self.shards.wait()

    def _image_pieces(self, name: str, metric: Any) -> Iterator[tuple[str, Callable[[], Arrays]]]:
        for system in self.systems:
            for jobs in self.gallery.parts(CHUNK):

                def make(system: str = system.name, jobs: Sequence[Job] = jobs) -> Arrays:
                    texts = [self.gallery.prompts[job.prompt].text for job in jobs]
                    real = self.gallery.originals(jobs) if metric.against == "picture" else None
                    return {"scores": score(metric, self.gallery.images(system, jobs), texts, real).numpy()}

                yield f"scores/{name}/{system.name}-{jobs[0].number:05d}", make

    def _feature_pieces(self, metric: Any) -> Iterator[tuple[str, Callable[[], Arrays]]]:
        def features(images: torch.Tensor) -> Arrays:
            return {"features": metric.net(images).float().cpu().numpy()}

        for system in self.systems:
            for jobs in self.gallery.parts(CHUNK):
                key = f"features/{metric.features}/{system.name}-{jobs[0].number:05d}"
                yield key, lambda name=system.name, jobs=jobs: features(self.gallery.images(name, jobs))  # type: ignore[misc]
        files = self.gallery.references() if metric.needs_reference else ()
        for start in range(0, len(files), CHUNK):
            part = files[start : start + CHUNK]
            key = f"features/{metric.features}/{REFERENCE}-{start:05d}"
            yield key, lambda part=part: features(torch.stack([read_picture(one, self.config.size) for one in part]))  # type: ignore[misc]

    def _set_pieces(self, name: str, metric: Any) -> Iterator[tuple[str, Callable[[], Arrays]]]:
        reference: list[Any] = []  # made when the first piece is missing, and then kept

        def make(system: str, repeat: int) -> Arrays:
            if not reference:
                count = len(self.gallery.references()) if metric.needs_reference else 0
                reference.append(self._state(metric, REFERENCE, slice(0, count)) if count else None)
            whole = len(self.gallery.prompts) * self.config.images
            own = self._state(metric, system, slice(repeat * whole, (repeat + 1) * whole))
            return {"value": np.array([own.compute(reference[0])])}

        for system in self.systems:
            for repeat in range(self.config.repeats):
                yield (
                    f"sets/{name}/{system.name}-{repeat:05d}",
                    lambda name=system.name, repeat=repeat: make(name, repeat),  # type: ignore[misc]
                )

    def _state(self, metric: Any, name: str, part: slice) -> Any:
        state = metric.state()
        features = self.store.join(f"features/{metric.features}/{name}", part.stop)["features"]
        state.update(torch.from_numpy(features[part]))
        return state


def read_picture_scores(store: Store, config: PicturesConfig, names: Sequence[str] = ()) -> PictureScores:
    """What is kept of these systems; of all that were measured to the end, if no names are given.

    Raises:
        ValueError: a system was not measured, or not to the end; the message says which.
    """
    prompts = tuple(Prompt(**prompt) for prompt in store.noted(BENCH)["prompts"])
    jobs = Gallery(config, prompts, {}).jobs
    classes = {name: METRICS[name].load() for name in config.metrics}

    def done(name: str) -> bool:
        return all(
            store.rows(f"{'scores' if cls.kind == 'image' else 'sets'}/{metric}/{name}")
            >= (len(jobs) if cls.kind == "image" else config.repeats)
            for metric, cls in classes.items()
        )

    systems = tuple(one for one in measured(store, names) if names or done(one[0]))
    if not systems:
        raise ValueError(f"{store.folder} holds no system that was measured to the end. Run `diffusemble evaluate`.")
    images, sets, features = {}, {}, {}
    for metric, cls in classes.items():
        if cls.kind == "image":
            images[metric] = {
                name: store.join(f"scores/{metric}/{name}", len(jobs))["scores"].astype(np.float64)
                for name, _, _ in systems
            }
            continue
        sets[metric] = {name: store.join(f"sets/{metric}/{name}", config.repeats)["value"] for name, _, _ in systems}
        if metric.startswith("kid"):
            found = {
                name: store.join(f"features/{cls.features}/{name}", len(jobs))["features"] for name, _, _ in systems
            }
            features[metric] = {**found, REFERENCE: store.joined(f"features/{cls.features}/{REFERENCE}")["features"]}
    higher = {name: bool(cls.higher_is_better) for name, cls in classes.items()}
    return PictureScores(systems, prompts, jobs, images, sets, features, higher)
