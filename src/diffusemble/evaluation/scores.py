"""Measures systems on captioned pictures, piece by piece; every piece is made once and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusemble.ensembles.base import Ensemble
from diffusemble.evaluation.config import EvaluateConfig
from diffusemble.evaluation.features import NETS, FeatureNet
from diffusemble.evaluation.grounds import grounds_of
from diffusemble.evaluation.heldout import HeldOut, decode_latents, encode_images, losses
from diffusemble.evaluation.metrics.base import load_metric
from diffusemble.evaluation.pictures import Row, choose, from_bytes, read_images, to_bytes
from diffusemble.evaluation.prompt_match import PromptMatch, SentenceEncoder
from diffusemble.evaluation.routing import expert_weights
from diffusemble.evaluation.shards import ALONE, Shards
from diffusemble.evaluation.store import Arrays, Store
from diffusemble.evaluation.stored import (
    DECODED,
    MATCH,
    REAL,
    REFERENCE,
    RIGHT,
    SPLITS,
    SYSTEMS,
    Layout,
    Scores,
    read_scores,
)
from diffusemble.evaluation.systems import LEARNED, System
from diffusemble.training.schedule import diffusion_of

Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Piece:
    """One thing to measure: where it is kept, how it is made, what to tell meanwhile."""

    key: str
    make: Callable[[], Arrays]
    what: str


class Bench:
    """Measures systems on pictures; whatever the store has is not measured again.

    Args:
        config: what to measure.
        rows: all captioned pictures.
        systems: what is compared.
        ensemble: the one whose weights are recorded.
        store: where scores are kept.
        shards: the processes that share the work.

    Raises:
        ValueError: a split of the data is empty.
        FileNotFoundError: a feature net or the heads of the prompt match are not installed.
    """

    def __init__(
        self,
        config: EvaluateConfig,
        rows: Sequence[Row],
        systems: Sequence[System],
        ensemble: Ensemble,
        store: Store,
        shards: Shards = ALONE,
    ) -> None:
        self.config, self.store, self.ensemble, self.shards = config, store, ensemble, shards
        self.systems = tuple(systems)
        self.folder = Path(config.data)
        self.rows = {split: choose(rows, split, config.held_out, self.folder) for split in SPLITS}
        self.train = choose(rows, "train", None, self.folder)
        pairs = choose(rows, "pair", config.images, self.folder)
        self.jobs = tuple(pairs[number % len(pairs)] for number in range(config.images))
        self.texts = sorted({row.text for row in rows})
        self.candidates = {row.style: sorted({r.text for r in rows if r.style == row.style}) for row in rows}
        self.vae = ensemble.experts[0].components["vae"]
        self.diffusion = diffusion_of(ensemble.experts, torch.device("cpu"))
        self.nets = [FeatureNet(name) for name in NETS]
        self.heads = PromptMatch.load()
        self.metrics = {name: load_metric(name, None, ensemble.device) for name in config.metrics}
        names = tuple(expert.name for expert in ensemble.experts)
        grounds = grounds_of(ensemble.experts, config.grounds)
        self.layout = Layout(self.rows, self.jobs, names, grounds, len({row.concept for row in rows}))

    def measure(self, tell: Tell = lambda share, what: None) -> Scores:
        """All scores, from the store as far as it goes; several processes share what is missing."""
        self._note()
        self._sentences()  # what is not installed should be missed before anything takes time
        held = {split: self._held_out(split) for split in SPLITS}
        self._work([*self._loss_pieces(held), *self._weight_pieces(held["pair"]), *self._image_pieces()], tell)
        self._work([*self._feature_pieces()], tell)
        self._work([*self._score_pieces()], tell)
        return read_scores(self.store, [system.name for system in self.systems])

    def _work(self, pieces: Sequence[Piece], tell: Tell) -> None:
        mine = self.shards.mine(pieces)
        for number, piece in enumerate(mine):
            tell(number / len(mine), piece.what)
            self.store.get(piece.key, piece.make)
        self.shards.wait()

    def _note(self) -> None:
        self.layout.write(self.store)
        for order, system in enumerate(self.systems):
            settings = {key: str(value) for key, value in system.settings.items()}
            values = {"title": system.title, "kind": system.kind, "order": order}
            self.store.note(f"{SYSTEMS}/{system.name}", values, {"settings": settings})

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

    def _loss_pieces(self, held: dict[str, HeldOut]) -> Iterator[Piece]:
        settings = self.config.times, self.config.draws, self.config.seed
        for system in self.systems:
            for split, whole in held.items():
                for part in self._parts(len(whole)):

                    def make(system: System = system, some: HeldOut = whole[part]) -> Arrays:
                        return {"losses": losses(system.predict, some, self.diffusion, *settings).numpy()}

                    what = f"held-out loss: {system.title}"
                    yield Piece(f"losses/{split}/{system.name}-{part.start:05d}", make, what)

    def _weight_pieces(self, held: HeldOut) -> Iterator[Piece]:
        for system in self.systems:
            for part in self._parts(len(held)) if system.name == LEARNED else ():

                def make(system: System = system, some: HeldOut = held[part]) -> Arrays:
                    found = expert_weights(self.ensemble, system.predict, some, self.diffusion, self.config.times)
                    return {"weights": found.numpy().astype(np.float32)}

                yield Piece(f"weights/weights-{part.start:05d}", make, f"weights: {system.title}")

    def _image_pieces(self) -> Iterator[Piece]:
        settings = {"num_inference_steps": self.config.steps, "guidance_scale": self.config.guidance}
        for system in self.systems:
            for part in self._parts(len(self.jobs)):

                def make(system: System = system, part: slice = part) -> Arrays:
                    texts, numbers = [job.text for job in self.jobs[part]], range(len(self.jobs))[part]
                    return {"images": to_bytes(system.draw(texts, numbers, self.config.seed, **settings))}

                yield Piece(f"images/{system.name}-{part.start:05d}", make, f"drawing: {system.title}")
        images = read_images(self.folder, self.jobs)
        yield Piece(f"images/{REAL}-00000", lambda: {"images": to_bytes(images)}, "held-out pictures")

        def decoded() -> Arrays:
            return {"images": to_bytes(decode_latents(self.vae, encode_images(self.vae, images)).cpu())}

        yield Piece(f"images/{DECODED}-00000", decoded, "held-out pictures")

    def _feature_pieces(self) -> Iterator[Piece]:
        def features(images: torch.Tensor) -> Arrays:
            return {net.name: net(images).numpy() for net in self.nets}

        for name in self._sets():
            yield Piece(f"features/{name}", lambda name=name: features(self._images(name)), f"features: {name}")  # type: ignore[misc]
        key, what = f"features/{REFERENCE}", "features: training pictures"
        yield Piece(key, lambda: features(read_images(self.folder, self.train)), what)

    def _score_pieces(self) -> Iterator[Piece]:
        texts = [job.text for job in self.jobs]
        for name in self._sets():
            yield Piece(f"scores/{name}", lambda name=name: self._match(name), f"prompt match: {name}")  # type: ignore[misc]
            for metric, score in self.metrics.items():

                def make(name: str = name, score: Any = score) -> Arrays:
                    images = self._images(name).split(self.config.batch)
                    prompts = [texts[at : at + self.config.batch] for at in range(0, len(texts), self.config.batch)]
                    found = [score(some, own) for some, own in zip(images, prompts, strict=True)]
                    return {"scores": torch.cat(found).numpy()}

                yield Piece(f"scores/{metric}/{name}", make, f"{metric}: {name}")

    def _sets(self) -> tuple[str, ...]:
        return (*(system.name for system in self.systems), REAL, DECODED)

    def _parts(self, count: int) -> Iterator[slice]:
        for start in range(0, count, self.config.batch):
            yield slice(start, min(start + self.config.batch, count))

    def _images(self, name: str) -> torch.Tensor:
        return from_bytes(self.store.join(f"images/{name}", len(self.jobs))["images"])

    def _sentences(self) -> dict[str, torch.Tensor]:
        found = self.store.get("sentences", lambda: {"sentences": SentenceEncoder()(self.texts).numpy()})["sentences"]
        return dict(zip(self.texts, torch.from_numpy(found), strict=True))

    def _match(self, name: str) -> Arrays:
        features, sentences = self.store.read(f"features/{name}"), self._sentences()
        both = torch.cat([torch.from_numpy(features[net.name]) for net in self.nets], dim=1)
        match = self.heads.score(both, torch.stack([sentences[job.text] for job in self.jobs]))
        rank = torch.zeros(len(self.jobs), dtype=torch.long)
        for style, texts in self.candidates.items():
            mine = [number for number, job in enumerate(self.jobs) if job.style == style]
            if mine:
                answers = torch.tensor([texts.index(self.jobs[number].text) for number in mine])
                candidates = torch.stack([sentences[text] for text in texts])
                rank[mine] = self.heads.rank(both[mine], candidates, answers)
        return {MATCH: match.numpy(), RIGHT: (rank == 0).numpy()}
