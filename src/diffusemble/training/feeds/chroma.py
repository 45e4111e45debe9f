"""Chroma: FLUX with T5's text alone, masked behind the prompt, and guidance by a second pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusemble.training.feeds.base import denoiser_of
from diffusemble.training.feeds.flux import FluxFeed


class ChromaFeed(FluxFeed):
    """Text with its mask, which belongs to all experts: they tokenize alike."""

    @torch.no_grad()
    def encode(self, pipeline: Any, prompts: Sequence[str], empty: bool = False) -> dict[str, Tensor]:
        """``encoder_hidden_states``, and ``attention_mask [b s]`` of the text alone."""
        halves = pipeline.encode_prompt(
            prompt=list(prompts), device=pipeline.vae.device, do_classifier_free_guidance=empty, **self._length
        )
        tokens, _, mask = halves[3:] if empty else halves[:3]
        sort = getattr(denoiser_of(pipeline), "by_expert", dict)  # pipelines pack the experts side by side
        text = sort({"encoder_hidden_states": tokens, "attention_mask": mask})
        return {name: tensor.cpu().contiguous() for name, tensor in text.items()}

    def predict(self, denoiser: Any, noisy: Tensor, times: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The denoiser's output, back on the grid; every place of the picture is seen."""
        text = inputs["attention_mask"]
        image = text.new_ones(len(text), self.image_tokens(*noisy.shape[2:]))
        return super().predict(denoiser, noisy, times, {**inputs, "attention_mask": torch.cat([text, image], dim=1)})
