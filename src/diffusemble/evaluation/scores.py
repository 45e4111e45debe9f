"""Scores of every system, picture by picture, measured once and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffusemble.ensemble import EnsembleDenoiser
from diffusemble.evaluation.config import EvaluateConfig
from diffusemble.evaluation.features import NETS, FeatureNet
from diffusemble.evaluation.heldout import HeldOut, decode_latents, encode_images, losses
from diffusemble.evaluation.pictures import Row, choose, from_bytes, read_images, to_bytes
from diffusemble.evaluation.prompt_match import PromptMatch, SentenceEncoder
from diffusemble.evaluation.routing import expert_weights
from diffusemble.evaluation.store import Store
from diffusemble.evaluation.systems import LEARNED, System

Array = NDArray[Any]
SPLITS = ("pair", "concept")
REAL, DECODED, REFERENCE = "real", "decoded", "reference"
Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Drawn:
    """One set of pictures for the same captions.

    Attributes:
        images: uint8 ``[n h w 3]``.
        features: ``[n 1280]`` by net.
        match: scale × cosine with the own caption, ``[n]``.
        rank: place of the own caption among all concepts, ``[n]``, 0 for the best.
    """

    images: Array
    features: Mapping[str, Array]
    match: Array
    rank: Array


@dataclass(frozen=True)
class Scores:
    """Everything measured.

    Attributes:
        systems: name, title and kind of each, in order.
        rows: held-out pictures by split.
        losses: ``[n t]`` by split and system.
        weights: the ensemble's mean weight of each expert, ``[n t k e]``, on the pairs; None without the ensemble.
        experts: names of the e experts.
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
    jobs: tuple[Row, ...]
    drawn: Mapping[str, Drawn]
    reference: Mapping[str, Array]


class Bench:
    """Measures systems on pictures; whatever the store has is not measured again.

    Args:
        config: what to measure.
        rows: all captioned pictures.
        systems: what is compared.
        ensemble: the one whose weights are recorded.
        store: where scores are kept.

    Raises:
        ValueError: a split of the data is empty.
        FileNotFoundError: a feature net or the heads of the prompt match are not installed.
    """

    def __init__(
        self,
        config: EvaluateConfig,
        rows: Sequence[Row],
        systems: Sequence[System],
        ensemble: EnsembleDenoiser,
        store: Store,
    ) -> None:
        self.config, self.store, self.ensemble = config, store, ensemble
        self.systems = tuple(systems)
        self.folder = Path(config.data)
        self.rows = {split: choose(rows, split, config.held_out, self.folder) for split in SPLITS}
        self.train = choose(rows, "train", None, self.folder)
        pairs = choose(rows, "pair", config.images, self.folder)
        self.jobs = tuple(pairs[number % len(pairs)] for number in range(config.images))
        self.texts = sorted({row.text for row in rows})
        self.candidates = {row.style: sorted({r.text for r in rows if r.style == row.style}) for row in rows}
        self.vae = ensemble.experts[0].components["vae"]
        self.alphas = ensemble.experts[0].components["scheduler"].alphas_cumprod
        self.nets = [FeatureNet(name) for name in NETS]
        self.heads = PromptMatch.load()

    def measure(self, tell: Tell = lambda share, what: None) -> Scores:
        """All scores, from the store as far as it goes."""
        count, done = len(self.systems), 0
        self._sentences()  # what is not installed should be missed before anything takes time
        held = {split: self._held_out(split) for split in SPLITS}
        found: dict[str, dict[str, Array]] = {split: {} for split in SPLITS}
        for system in self.systems:
            tell(done / (3 * count), f"held-out loss: {system.title}")
            for split in SPLITS:
                found[split][system.name] = self._losses(system, split, held[split])
            done += 1
        drawn = {}
        for system in self.systems:
            tell(done / (3 * count), f"drawing: {system.title}")
            drawn[system.name] = self._drawn(system.name, self._images(system))
            done += 2
        images = read_images(self.folder, self.jobs)
        drawn[REAL] = self._drawn(REAL, images)
        drawn[DECODED] = self._drawn(DECODED, decode_latents(self.vae, encode_images(self.vae, images)))
        return Scores(
            systems=tuple((system.name, system.title, system.kind) for system in self.systems),
            rows=self.rows,
            losses=found,
            weights=self._weights(held["pair"]),
            experts=tuple(expert.name for expert in self.ensemble.experts),
            jobs=self.jobs,
            drawn=drawn,
            reference=self._features(REFERENCE, lambda: read_images(self.folder, self.train)),
        )

    # -- pieces, each kept by itself -----------------------------------------------------------------------------------

    def _held_out(self, split: str) -> HeldOut:
        rows = self.rows[split]
        latents = self.store.get(
            f"latents/{split}",
            lambda: {"latents": encode_images(self.vae, read_images(self.folder, rows)).float().cpu().numpy()},
        )["latents"]
        where = self.ensemble.device, self.ensemble.dtype
        return HeldOut(
            tuple(row.file_name for row in rows), tuple(row.text for row in rows), torch.from_numpy(latents).to(*where)
        )

    def _losses(self, system: System, split: str, held: HeldOut) -> Array:
        def piece(part: slice) -> dict[str, Array]:
            settings = self.config.times, self.config.draws, self.config.seed
            return {"losses": losses(system.predict, held[part], self.alphas, *settings).numpy()}

        parts = [
            self.store.get(f"losses/{split}/{system.name}-{part.start:05d}", lambda part=part: piece(part))  # type: ignore[misc]
            for part in self._parts(len(held))
        ]
        return np.concatenate([part["losses"] for part in parts])

    def _weights(self, held: HeldOut) -> Array | None:
        system = next((system for system in self.systems if system.name == LEARNED), None)
        if system is None:
            return None

        def piece(part: slice) -> dict[str, Array]:
            found = expert_weights(self.ensemble, system.predict, held[part], self.alphas, self.config.times)
            return {"weights": found.numpy().astype(np.float32)}

        parts = [
            self.store.get(f"weights/{part.start:05d}", lambda part=part: piece(part))  # type: ignore[misc]
            for part in self._parts(len(held))
        ]
        return np.concatenate([part["weights"] for part in parts])

    def _images(self, system: System) -> torch.Tensor:
        def piece(part: slice) -> dict[str, Array]:
            jobs, config = self.jobs[part], self.config
            numbers = range(len(self.jobs))[part]
            settings = {"num_inference_steps": config.steps, "guidance_scale": config.guidance}
            return {"images": to_bytes(system.draw([job.text for job in jobs], numbers, config.seed, **settings))}

        parts = [
            self.store.get(f"images/{system.name}-{part.start:05d}", lambda part=part: piece(part))  # type: ignore[misc]
            for part in self._parts(len(self.jobs))
        ]
        return from_bytes(np.concatenate([part["images"] for part in parts]))

    def _parts(self, count: int) -> Iterator[slice]:
        for start in range(0, count, self.config.batch):
            yield slice(start, min(start + self.config.batch, count))

    def _features(self, name: str, images: Callable[[], torch.Tensor]) -> dict[str, Array]:
        return self.store.get(f"features/{name}", lambda: {net.name: net(images()).numpy() for net in self.nets})

    def _sentences(self) -> dict[str, torch.Tensor]:
        found = self.store.get("sentences", lambda: {"sentences": SentenceEncoder()(self.texts).numpy()})["sentences"]
        return dict(zip(self.texts, torch.from_numpy(found), strict=True))

    def _drawn(self, name: str, images: torch.Tensor) -> Drawn:
        features = self._features(name, lambda: images)
        both = torch.cat([torch.from_numpy(features[net.name]) for net in self.nets], dim=1)
        sentences = self._sentences()
        match = self.heads.score(both, torch.stack([sentences[job.text] for job in self.jobs]))
        rank = torch.zeros(len(self.jobs), dtype=torch.long)
        for style, texts in self.candidates.items():
            mine = torch.tensor(
                [number for number, job in enumerate(self.jobs) if job.style == style], dtype=torch.long
            )
            if len(mine):
                answers = torch.tensor([texts.index(self.jobs[number].text) for number in mine.tolist()])
                rank[mine] = self.heads.rank(both[mine], torch.stack([sentences[text] for text in texts]), answers)
        return Drawn(to_bytes(images), features, match.numpy(), rank.numpy())
