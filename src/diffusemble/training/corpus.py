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

from diffusemble.ensemble import EnsembleDenoiser
from diffusemble.training.cache import Cache, Encoded, Rows, Shelf, fingerprint
from diffusemble.training.chance import generator_of
from diffusemble.training.config import DataConfig, RunConfig
from diffusemble.training.data import Picture, Source, open_sources
from diffusemble.training.images import read_square

log = logging.getLogger(__name__)

SHARD = 256  # samples per shard: what a kill during encoding can cost
VALUES_AT_ONCE = 8 * 3 * 512 * 512  # through the VAE together

Report = Callable[[str, int, int | None], None]
"""Called with what is being encoded, how many are done, and the total where it is known."""


@dataclass(frozen=True)
class Corpus:
    """An encoded data set.

    Attributes:
        latents: scaled latents, rows of ``[c h w]``.
        text: the denoiser's text inputs by name, packed; row 0 is the empty prompt, row i + 1 belongs to latents i.
        size: side of the pictures in pixels.
    """

    latents: Rows
    text: dict[str, Rows]
    size: int

    def __len__(self) -> int:
        return len(self.latents)

    def inputs(self, indices: Tensor, dropped: Tensor) -> dict[str, Any]:
        """Keyword arguments of the denoiser for samples ``indices [b]``; where ``dropped [b]``, the empty prompt's."""
        rows = torch.where(dropped, 0, indices + 1).tolist()
        text = {name: table[rows] for name, table in self.text.items()}
        if "text_embeds" not in text:
            return text
        # SDXL also takes original size, corner of the crop, and target size.
        sizes = torch.tensor([self.size, self.size, 0, 0, self.size, self.size], dtype=torch.float32)
        added = {"text_embeds": text.pop("text_embeds"), "time_ids": sizes.expand(len(rows), -1)}
        return {**text, "added_cond_kwargs": added}


def encode_corpus(data: Sequence[DataConfig], config: RunConfig, ensemble: EnsembleDenoiser, report: Report) -> Corpus:
    """Encode what is not in the cache yet, and open it.

    Pictures that cannot be read are skipped with a warning that names them.

    Raises:
        ValueError: no picture can be read, or the experts have no VAE and text encoders.
    """
    pipeline = ensemble.pipeline().to(ensemble.device)
    pictures = _pictures(open_sources(data), config, pipeline.vae, report)
    captions = [caption for notes in pictures.notes for caption in notes["captions"]]
    text = _texts(captions, config, pipeline, report)
    return Corpus(pictures.rows["latents"], dict(text.rows), config.size)


def _pictures(source: Source, config: RunConfig, vae: Any, report: Report) -> Shelf:
    settings = f"{config.size} {config.crop} {config.seed if config.crop == 'random' else ''}"
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
    def read(numbered: tuple[int, Picture]) -> Tensor | None:
        number, picture = numbered
        try:
            generator = generator_of(config.seed, "crop", first + number)
            return read_square(picture.read(), config.size, config.crop, generator)
        except OSError as error:
            log.warning("Skipped %s: %s", picture.name, error)
            return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        squares = list(pool.map(read, enumerate(chunk)))
    kept = [square for square in squares if square is not None]
    notes = {
        "captions": [p.caption for p, square in zip(chunk, squares, strict=True) if square is not None],
        "skipped": [p.name for p, square in zip(chunk, squares, strict=True) if square is None],
    }
    return Encoded({"latents": _to_latents(kept, vae) if kept else torch.zeros(0)}, notes)


@torch.no_grad()
def _to_latents(squares: Sequence[Tensor], vae: Any) -> Tensor:
    """Scaled latents ``[n c h w]``: the mean of the VAE's posterior, minus its shift, times its scaling factor."""
    at_once = max(1, VALUES_AT_ONCE // squares[0][0].numel())
    parts = []
    for batch in torch.stack(list(squares)).split(at_once):
        mean = vae.encode(batch.to(vae.device, vae.dtype)).latent_dist.mode()
        parts.append((mean.float() - (vae.config.shift_factor or 0)) * vae.config.scaling_factor)
    return torch.cat(parts).cpu().contiguous()


def _texts(captions: Sequence[str], config: RunConfig, pipeline: Any, report: Report) -> Shelf:
    encoders = [part for name, part in pipeline.components.items() if name.startswith("text_encoder") and part]
    tokenizers = [part for name, part in pipeline.components.items() if name.startswith("tokenizer") and part]
    tokens = [str(tokenizer(["", *captions], truncation=True).input_ids) for tokenizer in tokenizers]
    cache = Cache(config.cache_folder, "text", type(pipeline).__name__, fingerprint(encoders), *tokens)
    if not cache.complete:
        number = 0
        # The empty prompt is shard 0 by itself: guidance may want something else than the encoding of "".
        if not cache.has(0):
            cache.write(0, Encoded(_encode_text([""], pipeline, empty=True), {}))
        for number, chunk in enumerate(_chunks(captions, SHARD), start=1):
            if not cache.has(number):
                cache.write(number, Encoded(_encode_text(chunk, pipeline), {}))
            report("captions", min(number * SHARD, len(captions)), len(captions))
        cache.finish(number + 1)
    return cache.open()


@torch.no_grad()
def _encode_text(prompts: Sequence[str], pipeline: Any, empty: bool = False) -> dict[str, Tensor]:
    """Packed embeddings as the pipeline computes them for drawing; of ``empty``, those of the unconditional half."""
    encoded = pipeline.encode_prompt(
        prompt=list(prompts), device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=empty
    )
    offset = 1 if empty else 0
    names = ("encoder_hidden_states",) if len(encoded) == 2 else ("encoder_hidden_states", "text_embeds")
    return {name: encoded[2 * place + offset].cpu().contiguous() for place, name in enumerate(names)}


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
