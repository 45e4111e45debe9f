"""Guidance between two shares of the steps only, in unmodified pipelines (arXiv 2404.07724).

Early guidance makes pictures alike, and late guidance changes little; without it a step costs half.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from diffusemble.adapters.steps import StepCount
from diffusemble.blocks.turns import select


@contextmanager
def guidance_interval(pipeline: Any, start: float = 0.0, stop: float = 1.0) -> Iterator[None]:
    """Guide only in those steps whose share of the run lies in ``[start, stop)``.

    In the other steps the denoiser computes the prompt's half of the batch alone, and the pipeline gets it as both
    halves: c + w (c - c) = c for every scale w, bit for bit.

    Args:
        pipeline: a diffusers pipeline with classifier-free guidance, around an ensemble or a single model.
        start: first share of the steps with guidance, from 0.
        stop: share of the steps from which on there is none, up to 1.

    Raises:
        ValueError: the shares are in no order; the pipeline has no classifier-free guidance of two halves, or (at its
            first step) draws without any.
    """
    if not 0 <= start <= stop <= 1:
        raise ValueError(f"A guidance interval is 0 <= start <= stop <= 1, shares of the steps; got {start}, {stop}.")
    name = type(pipeline).__name__
    # The others ask for the two halves one after the other (Chroma, FLUX.2) or as lists of pictures (Z-Image).
    in_one_call = hasattr(pipeline, "unet") or name.startswith("StableDiffusion3")
    if not (in_one_call and hasattr(type(pipeline), "do_classifier_free_guidance")):
        raise ValueError(
            f"{name} has no classifier-free guidance in one call of two halves that an interval could switch off. "
            f"Leave the interval out."
        )
    denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    gate = _Gate(pipeline, start, stop)
    hooks = (
        denoiser.register_forward_pre_hook(gate.before, with_kwargs=True),
        denoiser.register_forward_hook(gate.after),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Gate:
    """Halves what the denoiser is given in steps without guidance, and doubles what it returns."""

    def __init__(self, pipeline: Any, start: float, stop: float) -> None:
        self.pipeline, self.start, self.stop = pipeline, start, stop
        self.count = StepCount(pipeline)
        self.halved = False

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if getattr(self.pipeline, "do_perturbed_attention_guidance", False):
            raise ValueError(
                "A guidance interval needs batches of two halves, and perturbed-attention guidance makes three parts. "
                "Set pag_scale=0, or leave the interval out."
            )
        if not self.pipeline.do_classifier_free_guidance:
            raise ValueError(
                "A guidance interval switches guidance off, and this pipeline draws without: its guidance scale is at "
                "most 1, or the first expert is told the scale and guides by itself (latent consistency models). Leave "
                "the interval out."
            )
        step, steps = self.count(args, kwargs)
        self.halved = not self.start <= step / steps < self.stop
        if not self.halved:
            return None
        sample: Any = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        batch = len(sample)
        rows = range(batch // 2, batch)
        return select(args, list(rows), batch), select(kwargs, list(rows), batch)

    def after(self, module: Any, args: tuple[Any, ...], output: Any) -> Any:
        if not self.halved:
            return None
        doubled = torch.cat([output[0], output[0]])
        return (doubled, *output[1:]) if isinstance(output, tuple) else type(output)(sample=doubled)
