"""Captioned pictures as latents and packed text embeddings, encoded once and cached."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusemble.ensembles.base import Ensemble
from diffusemble.ensembles.output_level import OutputEnsembleDenoiser
from diffusemble.training.cache import Cache, Encoded, Rows, Shelf, fingerprint
from diffusemble.training.chance import generator_of
from diffusemble.training.config import DataConfig, RunConfig
from diffusemble.training.data import open_sources
from diffusemble.training.feeds.base import Choices, Feed, Framing, feed_of
from diffusemble.training.images import Square, read_square
from diffusemble.training.latents import to_latents, units_of
from diffusemble.training.lend import lent
from diffusemble.training.readers import Readers
from diffusemble.training.source import Picture, Source

log = logging.getLogger(__name__)

SHARD = 256  # samples per shard: what a kill during encoding can cost
CAPTIONS_AT_ONCE = 16  # through the text encoders: a T5's attention takes 67 MB for 512 tokens

Report = Callable[[str, int, int | None], None]
"""Called with what is being encoded, how many are done, and the total where it is known."""


@dataclass(frozen=True)
class Corpus:
    """An encoded data set.

    Attributes:
        latents: scaled latents, rows of ``[c h w]``.
        frames: height and width of the files, top and left of the squares, aesthetic scores (or NaN), rows of ``[5]``.
        text: the denoiser's text inputs by name, packed, what ``readers`` share once; row 0 is the empty prompt, row
            i + 1 belongs to latents i.
        size: side of the pictures in pixels.
        feed: how the denoisers are called.
        readers: which experts' text is one.
    """

    latents: Rows
    frames: Rows
    text: dict[str, Rows]
    size: int
    feed: Feed
    readers: Readers

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(c, h, w)`` of one sample's latents."""
        c, h, w = self.latents[[0]].shape[1:]
        return c, h, w

    def inputs(self, indices: Tensor, dropped: Tensor) -> dict[str, Any]:
        """Keyword arguments of the denoiser for samples ``indices [b]``; where ``dropped [b]``, the empty prompt's."""
        rows = torch.where(dropped, 0, indices + 1).tolist()
        frames = self.frames[indices.tolist()]
        framing = Framing(frames[:, :2], frames[:, 2:4], (self.size, self.size), frames[:, 4], dropped)
        return self.feed.inputs(self.readers.each({name: table[rows] for name, table in self.text.items()}), framing)


def encode_corpus(
    data: Sequence[DataConfig],
    config: RunConfig,
    ensemble: Ensemble,
    report: Report,
    device: torch.device | None = None,
) -> Corpus:
    """Encode what is not in the cache yet, and open it.

    Pictures that cannot be read are skipped with a warning that names them.

    Args:
        data: captioned pictures.
        config: the run.
        ensemble: whose VAE and text encoders encode; its denoisers are not used.
        report: told what is done.
        device: where to encode; where the ensemble is by default.

    Raises:
        ValueError: no picture can be read, the experts have no VAE and text encoders, or they do not take what the
            configuration wants to tell them.
    """
    pipeline = ensemble.pipeline()
    feed = feed_of(pipeline, Choices(config.embedded_guidance, config.text_tokens))
    whole = isinstance(ensemble, OutputEnsembleDenoiser)  # there, text is packed as one
    readers = Readers((0,)) if whole else Readers.of(ensemble.experts)
    with lent(pipeline, device or ensemble.device, exact=True):
        pictures = _pictures(open_sources(data), config, pipeline.vae, report)
        captions = [caption for notes in pictures.notes for caption in notes["captions"]]
        text = _texts(captions, config, Reading(pipeline, feed, readers), report)
    rows = pictures.rows
    return Corpus(rows["latents"], rows["frames"], dict(text.rows), config.size, feed, readers)


def _pictures(source: Source, config: RunConfig, vae: Any, report: Report) -> Shelf:
    place = f"{config.size} {config.crop} {config.seed if config.crop == 'random' else ''}"
    settings = f"framed {place} {units_of(vae)}"
    cache = Cache(config.cache_folder, "latents", source.stamp, settings, fingerprint([vae]))
    if not cache.complete:
        number = -1
        for number, chunk in enumerate(_chunks(source.pictures(), SHARD)):
            if not cache.has(number):
                cache.write(number, _encode_pictures(chunk, number * SHARD, config, vae))
            report("pictures", number * SHARD + len(chunk), source.total)
        cache.finish(number + 1)
    shelf = cache.open()
    skipped = [name for notes in shelf.notes for name in notes["skipped"]]
    if skipped:
        log.warning("%d of the pictures could not be read and are left out, such as %s", len(skipped), skipped[0])
    if not shelf.rows or not len(shelf.rows["latents"]):
        raise ValueError(
            f"None of the {len(skipped)} pictures of the data could be read"
            f"{f', the first being {skipped[0]}' if skipped else ''}. Check data.path, data.root and the files."
        )
    return shelf


def _encode_pictures(chunk: Sequence[Picture], first: int, config: RunConfig, vae: Any) -> Encoded:
    def read(numbered: tuple[int, Picture]) -> Square | None:
        number, picture = numbered
        try:
            generator = generator_of(config.seed, "crop", first + number)
            return read_square(picture.read(), config.size, config.crop, generator)
        except OSError as error:
            log.warning("Skipped %s: %s", picture.name, error)
            return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        squares = list(pool.map(read, enumerate(chunk)))
    kept = [(picture, square) for picture, square in zip(chunk, squares, strict=True) if square is not None]
    frames = [(*square.original, *square.corner, picture.score) for picture, square in kept]
    pixels = [square.pixels for _, square in kept]
    return Encoded(
        {"latents": to_latents(pixels, vae) if kept else torch.zeros(0), "frames": torch.tensor(frames)},
        {
            "captions": [picture.caption for picture, _ in kept],
            "skipped": [p.name for p, square in zip(chunk, squares, strict=True) if square is None],
        },
    )


@dataclass(frozen=True)
class Reading:
    """How captions are read: by which pipeline, for which denoiser, and what is kept."""

    pipeline: Any
    feed: Feed
    readers: Readers

    def __call__(self, prompts: Sequence[str], empty: bool = False) -> Encoded:
        """A shard of prompts."""
        starts = range(0, len(prompts), CAPTIONS_AT_ONCE)
        parts = [self.feed.encode(self.pipeline, prompts[at : at + CAPTIONS_AT_ONCE], empty) for at in starts]
        text = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return Encoded(self.readers.once(text), {})


def _texts(captions: Sequence[str], config: RunConfig, read: Reading, report: Report) -> Shelf:
    pipeline = read.pipeline
    encoders = [part for name, part in pipeline.components.items() if name.startswith("text_encoder") and part]
    tokenizers = [part for name, part in pipeline.components.items() if name.startswith("tokenizer") and part]
    tokens = [str(tokenizer(["", *captions], truncation=True).input_ids) for tokenizer in tokenizers]
    settings = f"{type(pipeline).__name__} {read.feed.text_settings} {read.readers.order}"
    cache = Cache(config.cache_folder, "text", settings, fingerprint(encoders), *tokens)
    if not cache.complete:
        number = 0
        # The empty prompt is shard 0 by itself: guidance may want something else than the encoding of "".
        if not cache.has(0):
            cache.write(0, read([""], empty=True))
        for number, chunk in enumerate(_chunks(captions, SHARD), start=1):
            if not cache.has(number):
                cache.write(number, read(chunk))
            report("captions", min(number * SHARD, len(captions)), len(captions))
        cache.finish(number + 1)
    return cache.open()


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
