"""Stable Diffusion 1.x and 2.x, and SDXL with its refiner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusemble.training.feeds.base import Choices, Framing, Text, encode_halves, refuse_choices

SCORE, NEGATIVE_SCORE = 6.0, 2.5
"""What SDXL's refiner is told by default when it draws, with the prompt and without."""


class UNetFeed:
    """Text by cross-attention; SDXL is also told pooled text, the file's size, where it was cut, and to what size.

    The refiner is told an aesthetic score in the place of the last.

    Args:
        pipeline: of the denoiser.
        denoiser: a ``UNet2DConditionModel``.
        choices: choices of the run; it has none of them.
    """

    def __init__(self, pipeline: Any, denoiser: Any, choices: Choices) -> None:
        refuse_choices(choices, guidance=False, text_tokens=False)
        self._added = denoiser.config.addition_embed_type == "text_time"
        self._scored = bool(pipeline.config.get("requires_aesthetics_score"))
        self.text_settings = f"zeros {pipeline.config.get('force_zeros_for_empty_prompt')}"

    def encode(self, pipeline: Any, prompts: Sequence[str], empty: bool = False) -> dict[str, Tensor]:
        """``encoder_hidden_states`` and, for SDXL, the pooled ``text_embeds``."""
        names = ("encoder_hidden_states", "text_embeds") if self._added else ("encoder_hidden_states",)
        return encode_halves(pipeline, names, empty, prompt=list(prompts))

    def inputs(self, text: Text, framing: Framing) -> dict[str, Any]:
        """Text, and SDXL's ``added_cond_kwargs`` (Podell et al. 2023, arXiv 2307.01952, section 2.2)."""
        if not self._added:
            return dict(text)
        added = {"text_embeds": text["text_embeds"], "time_ids": self.time_ids(framing)}
        return {"encoder_hidden_states": text["encoder_hidden_states"], "added_cond_kwargs": added}

    def time_ids(self, framing: Framing) -> Tensor:
        """``[b 6]``: original height and width, top, left, height and width now; ``[b 5]`` for the refiner."""
        if self._scored:
            told = torch.where(framing.score.isnan(), torch.full_like(framing.score, SCORE), framing.score)
            last = torch.where(framing.dropped, torch.full_like(told, NEGATIVE_SCORE), told)[:, None]
        else:
            last = torch.tensor([framing.size], dtype=torch.float32).expand(len(framing.original), -1)
        return torch.cat([framing.original, framing.corner, last], dim=1)

    def predict(self, denoiser: Any, noisy: Tensor, times: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The denoiser's output."""
        prediction: Tensor = denoiser(noisy, times, **inputs, return_dict=False)[0]
        return prediction

    def image_tokens(self, height: int, width: int) -> int:
        """Every position is one."""
        return height * width
