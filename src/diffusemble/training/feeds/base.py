"""One contract around the families of denoisers: how captions and pictures become the arguments of their call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from diffusemble.registry import FEEDS, lookup

Text = Mapping[str, Tensor]
"""Encoded captions: the denoiser's text arguments by name, packed, a row each."""


@dataclass(frozen=True)
class Framing:
    """What is known of pictures beside what they show.

    Attributes:
        original: height and width of the files, ``[b 2]``.
        corner: top and left of the square in the scaled picture, ``[b 2]``.
        size: height and width that they have now.
        score: how beautiful they are, from 1 to 10, ``[b]``; NaN where nobody has said.
        dropped: whose prompt is dropped, ``[b]``, bool.
    """

    original: Tensor
    corner: Tensor
    size: tuple[int, int]
    score: Tensor
    dropped: Tensor


@dataclass(frozen=True)
class Choices:
    """What a run may choose.

    Attributes:
        guidance: scale that guidance-distilled denoisers are told; None: 1.
        text_tokens: length of a prompt in T5's tokens; None: the pipeline's own.
    """

    guidance: float | None = None
    text_tokens: int | None = None


class Feed(Protocol):
    """Denoisers of one architecture.

    Attributes:
        text_settings: what else than encoders and captions decides the encoded text, for the key of a cache.
    """

    text_settings: str

    def encode(self, pipeline: Any, prompts: Sequence[str], empty: bool = False) -> dict[str, Tensor]:
        """Text as the pipeline encodes it for drawing; of ``empty``, that of the half without a prompt."""
        ...

    def inputs(self, text: Text, framing: Framing) -> dict[str, Any]:
        """Every argument of the denoiser beside noisy latents and time."""
        ...

    def predict(self, denoiser: Any, noisy: Tensor, times: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Its prediction ``[b c h w]`` of ``noisy [b c h w]`` at ``times [b]``, in its scheduler's unit."""
        ...

    def image_tokens(self, height: int, width: int) -> int:
        """Length of the sequence that latents of this size are for the denoiser."""
        ...


def feed_of(pipeline: Any, choices: Choices = Choices()) -> Feed:
    """The family of a pipeline's denoiser, which may be an ensemble.

    Raises:
        ValueError: nothing is known of its class, or it does not take what ``choices`` chooses.
    """
    denoiser = denoiser_of(pipeline)
    denoisers = getattr(denoiser, "denoisers", None)
    one = denoiser if denoisers is None else denoisers[0]
    build = lookup(FEEDS, type(one).__name__, "denoiser class that training can feed")
    feed: Feed = build(pipeline, one, choices)
    return feed


def whole_pictures(count: int, height: int, width: int, dropped: bool = False) -> Framing:
    """Pictures as they are drawn: neither scaled nor cut, and of unknown beauty."""
    original = torch.tensor([[height, width]], dtype=torch.float32).expand(count, -1)
    return Framing(
        original=original,
        corner=torch.zeros(count, 2),
        size=(height, width),
        score=torch.full((count,), torch.nan),
        dropped=torch.full((count,), dropped),
    )


def joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two batches of arguments as one."""
    return {
        name: joined(part, second[name]) if isinstance(part, Mapping) else torch.cat([part, second[name]])
        for name, part in first.items()
    }


def denoiser_of(pipeline: Any) -> Any:
    """The denoiser of a pipeline, by whichever name it has there."""
    return pipeline.unet if getattr(pipeline, "unet", None) is not None else pipeline.transformer


def fed_denoiser(pipeline: Any) -> Any:
    """The denoiser of a pipeline, reading text as feeds encode it: expert by expert, whatever the pipeline packs."""
    denoiser = denoiser_of(pipeline)
    return denoiser.reading(None) if hasattr(denoiser, "reading") else denoiser


@torch.no_grad()
def encode_halves(pipeline: Any, names: Sequence[str], empty: bool, **arguments: Any) -> dict[str, Tensor]:
    """Text of pipelines that encode prompt and negative prompt together: by ``names``, each a pair of the two."""
    encoded = pipeline.encode_prompt(
        device=pipeline.vae.device, num_images_per_prompt=1, do_classifier_free_guidance=empty, **arguments
    )
    pairs = zip(names, encoded[empty::2], strict=True)
    return {name: tensor.cpu().contiguous() for name, tensor in pairs}


def patches(height: int, width: int, side: int) -> int:
    """How many squares of ``side`` latents cover ``height`` times ``width`` of them.

    Raises:
        ValueError: they do not, without a rest.
    """
    if height % side or width % side:
        raise ValueError(
            f"These experts cut latents into squares of {side} x {side}, but pictures of this size become {height} x "
            f"{width} latents. Choose a size that the VAE's factor times {side} divides, such as a multiple of 16."
        )
    return (height // side) * (width // side)


def refuse_choices(choices: Choices, guidance: bool, text_tokens: bool) -> None:
    """Refuse what a denoiser cannot be told.

    Args:
        choices: the choices of the run.
        guidance, text_tokens: whether the denoiser takes each.

    Raises:
        ValueError: names the setting.
    """
    if choices.guidance is not None and not guidance:
        raise ValueError(
            f"embedded_guidance is for experts that are told a guidance scale (FLUX.1 dev), and these have no weights "
            f"for it; got {choices.guidance:g}. Leave it out; guidance by a second pass belongs to drawing."
        )
    if choices.text_tokens is not None and not text_tokens:
        raise ValueError(
            f"text_tokens is the length of prompts for T5 (FLUX, SD3), and these experts read CLIP alone, whose length "
            f"is fixed; got {choices.text_tokens}. Leave it out."
        )
