"""Attention in slices, pictures one by one, tiles: switches that a plan sets for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from diffusemble.memory.plan import Plan

TILE = 64
"""Side of a tile, in latents."""

_FIELDS = ("use_slicing", "use_tiling", "tile_sample_min_size", "tile_latent_min_size")
_PLAIN = {"AttnProcessor", "AttnProcessor2_0"}


def tile(vae: Any, side: int = TILE) -> None:
    """Let ``vae`` decode in tiles of at most ``side`` latents."""
    vae.enable_tiling()
    if vae.tile_latent_min_size > side:
        vae.tile_sample_min_size = vae.tile_sample_min_size * side // vae.tile_latent_min_size
        vae.tile_latent_min_size = side


@contextmanager
def sliced_decoding(vae: Any, plan: Plan) -> Iterator[None]:
    """The VAE decodes as ``plan`` says.

    Raises:
        ValueError: this class of VAEs cannot.
    """
    if plan.vae != "whole" and not all(hasattr(vae, field) for field in _FIELDS):
        raise ValueError(
            f"A {type(vae).__name__} decodes pictures whole; the plan asks for {plan.vae!r}. Choose vae: whole."
        )
    before = {field: getattr(vae, field) for field in _FIELDS if hasattr(vae, field)}
    if plan.vae != "whole":
        vae.enable_slicing()
    if plan.vae == "tiles":
        tile(vae)
    try:
        yield
    finally:
        for field, value in before.items():
            setattr(vae, field, value)


@contextmanager
def sliced_attention(denoiser: nn.Module, plan: Plan) -> Iterator[None]:
    """A denoiser computes attention in slices, if ``plan`` says so.

    Raises:
        ValueError: this class cannot, or an adapter computes attention its own way.
    """
    if not plan.sliced:
        yield
        return
    model: Any = denoiser
    if not hasattr(model, "set_attention_slice"):
        raise ValueError(
            f"attention_slicing: a {type(model).__name__} has no sliced attention. Leave it out; fused attention needs "
            f"no more memory."
        )
    before = dict(model.attn_processors)
    others = {type(one).__name__ for one in before.values()} - _PLAIN
    if others:
        raise ValueError(
            f"attention_slicing replaces the attention of {', '.join(sorted(others))}, which an adapter brought. Leave "
            f"it out, or draw without the adapter."
        )
    model.set_attention_slice("auto")
    try:
        yield
    finally:
        model.set_attn_processor(before)
