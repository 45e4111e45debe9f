"""What studies measure with: every score is computed once, for all studies together, and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffusemble.drawing import placement
from diffusemble.ensembles.assembly import open_ensemble
from diffusemble.ensembles.base import Ensemble
from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.evaluation.heldout import HeldOut, encode_images, losses
from diffusemble.evaluation.metrics.base import load_metric, score
from diffusemble.evaluation.pictures import METADATA, Row, choose, from_bytes, read_images, read_rows, to_bytes
from diffusemble.evaluation.specs import ensemble_folder
from diffusemble.evaluation.statistics import Interval, paired_bootstrap
from diffusemble.evaluation.store import Arrays, Store
from diffusemble.evaluation.studies.config import StudyConfig
from diffusemble.evaluation.studies.digest import digest_of
from diffusemble.evaluation.systems import System
from diffusemble.samplers import use_sampler

Array = NDArray[Any]
Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Measured:
    """Scores of one system, picture by picture.

    Attributes:
        name, title, kind: of the system.
        losses: held-out loss ``[n t]``; empty if it was not measured.
        scores: of the drawn pictures, ``[m]`` by metric; empty if nothing was drawn.
        images: drawn, uint8 ``[m h w 3]``.
    """

    name: str
    title: str
    kind: str
    losses: Array = field(default_factory=lambda: np.zeros((0, 0)))
    scores: Mapping[str, Array] = field(default_factory=dict)
    images: Array = field(default_factory=lambda: np.zeros(0))

    @property
    def loss(self) -> float:
        """Mean over pictures and timesteps, ×1000."""
        return 1000 * float(self.losses.mean())


class Lab:
    """Measures systems on the pictures of one configuration.

    Args:
        config: what to measure, and where scores are kept.
        tell: told how far a study is, 0 to 1, and what is being done.

    Raises:
        ValueError: the split is empty.
        FileNotFoundError: there are no captioned pictures.
    """

    def __init__(self, config: StudyConfig, tell: Tell = lambda share, what: None) -> None:
        self.config, self.tell = config, tell
        self.device, self.dtype = placement(config.device, config.dtype)
        self.folder = Path(config.data)
        self.all_rows = read_rows(self.folder)
        self.rows = choose(self.all_rows, config.split, config.held_out, self.folder)
        self.jobs = choose(self.all_rows, config.split, config.images, self.folder)
        listing = hashlib.sha256((self.folder / METADATA).read_bytes()).hexdigest()[:16]
        self._scorers: dict[str, Any] = {}
        self.store = Store(Path(config.out) / "scores" / listing, {"pictures": listing}, {})

    @cached_property
    def ensemble(self) -> Ensemble:
        """The ensemble of the configuration."""
        return self.load(self.config.ensemble)

    def load(self, source: str) -> Ensemble:
        """``zoo:<group>``, or the folder of a saved ensemble, where the configuration wants it to run.

        Raises:
            ValueError: its experts meet at the output alone.
        """
        folder = ensemble_folder(source)
        ensemble = open_ensemble(folder, device=self.device, dtype=self.dtype)
        if not isinstance(ensemble, EnsembleDenoiser):
            raise ValueError(
                f"Studies compare what experts gain that meet in their blocks, and those of {folder} meet at the "
                f"output alone. Measure it with `diffusemble evaluate experts=[ONE OF THEM] "
                f"systems=[ensemble:{folder}]`, or give the folder of an ensemble that was trained with level: block."
            )
        return ensemble.eval()

    def measure(
        self,
        systems: Sequence[System],
        loss: bool = True,
        draw: bool = True,
        span: tuple[float, float] = (0, 1),
        scheduler: str | None = None,
    ) -> dict[str, Measured]:
        """Held-out losses and drawn pictures with their scores, by the systems' names.

        Args:
            systems: what to measure.
            loss, draw: which of the two.
            span: from where to where this takes the progress of the study.
            scheduler: sampler; that of the configuration by default.
        """
        found = {}
        for number, system in enumerate(systems):
            self.tell(span[0] + (span[1] - span[0]) * number / len(systems), system.title)
            # Equal ways to draw are only recognised if all of them have their sampler already.
            sampler = scheduler or self.config.scheduler
            use_sampler(system.pipeline, sampler)
            images = self.images(system) if draw else np.zeros(0)
            found[system.name] = Measured(
                system.name,
                system.title,
                system.kind,
                self.losses(system) if loss else np.zeros((0, 0)),
                self.scores(system, images) if draw else {},
                images,
            )
        return found

    # -- pieces --------------------------------------------------------------------------------------------------------

    def held(self, system: System) -> HeldOut:
        """The held-out pictures in the system's latents."""
        vae = system.pipeline.vae
        latents = self.keep(
            "latents",
            [digest_of(vae), [row.file_name for row in self.rows]],
            lambda: {"latents": encode_images(vae, read_images(self.folder, self.rows)).float().cpu().numpy()},
        )["latents"]
        names, texts = [row.file_name for row in self.rows], [row.text for row in self.rows]
        return HeldOut(tuple(names), tuple(texts), torch.from_numpy(latents).to(self.device, self.dtype))

    def losses(self, system: System) -> Array:
        """Held-out loss ``[n t]``."""
        held, config = self.held(system), self.config
        settings = [list(config.times), config.draws, config.seed]

        def piece(part: slice) -> Arrays:
            found = losses(system.predict, held[part], system.diffusion, config.times, config.draws, config.seed)
            return {"losses": found.numpy()}

        mark = digest_of(system.pipeline)
        parts = [
            self.keep(f"losses/{system.name}", [mark, settings, held.keys[part]], partial(piece, part))
            for part in self.parts(len(held))
        ]
        return np.concatenate([part["losses"] for part in parts])

    def images(self, system: System) -> Array:
        """Drawn pictures, uint8 ``[m h w 3]``; picture i starts from the same noise in every system."""
        config = self.config
        given = {"num_inference_steps": config.steps, "guidance_scale": config.guidance}
        settings = {**given, **system.settings}

        def piece(part: slice) -> Arrays:
            texts, numbers = [job.text for job in self.jobs[part]], range(len(self.jobs))[part]
            return {"images": to_bytes(system.draw(texts, numbers, config.seed, **given))}

        mark = [digest_of(system.pipeline), config.seed, {key: str(value) for key, value in settings.items()}]
        parts = []
        for part in self.parts(len(self.jobs)):
            texts = [job.text for job in self.jobs[part]]
            parts.append(self.keep(f"images/{system.name}", [*mark, part.start, texts], partial(piece, part)))
        return np.concatenate([part["images"] for part in parts])

    def scores(self, system: System, images: Array) -> dict[str, Array]:
        """Scores of drawn pictures ``[m]`` with their captions, by metric."""
        texts, drawn = [job.text for job in self.jobs], hashlib.sha256(images.tobytes()).hexdigest()

        def made(metric: str) -> Arrays:
            real = read_images(self.folder, self.jobs)
            scorer, drawings = self.scorer(metric), from_bytes(images)
            found = [score(scorer, drawings[part], texts[part], real[part]) for part in self.parts(len(texts))]
            return {"scores": torch.cat(found).float().numpy()}

        found = {}
        for metric in self.config.metrics:
            found[metric] = self.keep(f"scores/{metric}/{system.name}", [drawn, texts], partial(made, metric))["scores"]
        return found

    def scorer(self, metric: str) -> Any:
        """A metric of single pictures, loaded once.

        Raises:
            ValueError: unknown name, or a metric of sets.
            FileNotFoundError: its weights are missing.
        """
        if metric not in self._scorers:
            weights = Path(self.config.weights) if self.config.weights else None
            found = load_metric(metric, weights, self.device)
            if found.kind != "image":
                raise ValueError(
                    f"Studies score single pictures, but {metric!r} compares sets. Leave it out of metrics."
                )
            self._scorers[metric] = found
        return self._scorers[metric]

    def gap(self, a: Array, b: Array, rows: Sequence[Row]) -> Interval:
        """Mean of a - b with its paired interval over whole concepts; ``[n]`` or ``[n t]`` for the n ``rows``."""
        differences = (a.astype(float) - b.astype(float)).reshape(len(rows), -1).mean(axis=1)
        return paired_bootstrap(differences, [row.concept for row in rows], self.config.bootstrap, self.config.seed)

    def parts(self, count: int) -> Iterator[slice]:
        """Batches."""
        for start in range(0, count, self.config.batch):
            yield slice(start, min(start + self.config.batch, count))

    def keep(self, name: str, depends_on: Any, make: Callable[[], Arrays]) -> Arrays:
        """What ``make`` gives, computed once for everything it ``depends_on`` (anything that JSON can hold)."""
        mark = hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=list).encode()).hexdigest()[:20]
        return self.store.get(f"{name}-{mark}", make)
