"""FLUX.1: pooled CLIP, T5, latents packed as tokens with positions, and the guidance that a distilled model is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor

from diffusemble.training.feeds.base import Choices, Framing, Text, denoiser_of, patches, refuse_choices

TIME_UNIT = 1000  # the denoiser's time goes from 0 to 1


class FluxFeed:
    """Squares of 2 x 2 latents are one token; text tokens have no position.

    A guidance-distilled denoiser (FLUX.1 dev) is told a guidance scale. At 1 it predicts the flow itself, which is what
    the loss compares it with; at the 3.5 that it draws with, it predicts a flow beyond that on purpose, and training
    would teach the aggregator to undo the guidance.

    Args:
        pipeline: of the denoiser.
        denoiser: a ``FluxTransformer2DModel``.
        choices: choices of the run.
    """

    def __init__(self, pipeline: Any, denoiser: Any, choices: Choices) -> None:
        self._told = bool(denoiser_of(pipeline).config.get("guidance_embeds"))
        refuse_choices(choices, guidance=self._told, text_tokens=True)
        self._guidance = 1.0 if choices.guidance is None else choices.guidance
        self._length = {} if choices.text_tokens is None else {"max_sequence_length": choices.text_tokens}
        self.text_settings = f"tokens {choices.text_tokens}"

    @torch.no_grad()
    def encode(self, pipeline: Any, prompts: Sequence[str], empty: bool = False) -> dict[str, Tensor]:
        """``encoder_hidden_states`` and ``pooled_projections``."""
        tokens, pooled, _ = pipeline.encode_prompt(prompt=list(prompts), device=pipeline.vae.device, **self._length)
        return {"encoder_hidden_states": tokens.cpu().contiguous(), "pooled_projections": pooled.cpu().contiguous()}

    def inputs(self, text: Text, framing: Framing) -> dict[str, Any]:
        """Text with its positions, and the guidance scale where the denoiser is told one."""
        tokens = text["encoder_hidden_states"]
        guidance = {"guidance": torch.full((len(tokens),), self._guidance)} if self._told else {}
        return {**text, **guidance}

    def predict(self, denoiser: Any, noisy: Tensor, times: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The denoiser's output, back on the grid."""
        b, c, h, w = noisy.shape
        text = inputs["encoder_hidden_states"]
        packed = denoiser(
            hidden_states=FluxPipeline._pack_latents(noisy, b, c, h, w),
            timestep=times / TIME_UNIT,
            img_ids=FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, noisy.device, noisy.dtype),
            txt_ids=text.new_zeros(text.shape[1], 3, dtype=noisy.dtype),
            **inputs,
            return_dict=False,
        )[0]
        prediction: Tensor = FluxPipeline._unpack_latents(packed, h, w, vae_scale_factor=1)
        return prediction

    def image_tokens(self, height: int, width: int) -> int:
        """One for every 2 x 2 latents.

        Raises:
            ValueError: they do not cover the latents.
        """
        return patches(height, width, 2)
