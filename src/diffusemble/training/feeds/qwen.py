"""Qwen-Image: text of Qwen2.5-VL with its mask, and latents packed as tokens."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import QwenImagePipeline
from torch import Tensor
from torch.nn import functional

from diffusemble.training.feeds.base import Choices, Framing, Text, denoiser_of, patches, refuse_choices
from diffusemble.training.feeds.flux import TIME_UNIT

TEXT, MASK = "encoder_hidden_states", "encoder_hidden_states_mask"


class QwenFeed:
    """Squares of 2 x 2 latents are one token; text is as long as the prompt.

    Prompts of one batch differ in length, so a mask says how far each goes. It belongs to all experts: they tokenize
    alike.

    Args:
        pipeline: of the denoiser.
        denoiser: a ``QwenImageTransformer2DModel``.
        choices: choices of the run.
    """

    def __init__(self, pipeline: Any, denoiser: Any, choices: Choices) -> None:
        refuse_choices(choices, guidance=False, text_tokens=True)
        usual: int = inspect.signature(type(pipeline).__call__).parameters["max_sequence_length"].default
        self._longest = choices.text_tokens or usual
        self.text_settings = f"tokens {self._longest}"

    @torch.no_grad()
    def encode(self, pipeline: Any, prompts: Sequence[str], empty: bool = False) -> dict[str, Tensor]:
        """Text filled up with zeros to the longest prompt that there may be, and its mask ``[b s]``."""
        text, mask = pipeline.encode_prompt(
            prompt=list(prompts), device=pipeline.vae.device, max_sequence_length=self._longest
        )
        mask = text.new_ones(text.shape[:2], dtype=torch.long) if mask is None else mask
        rest = self._longest - text.shape[1]
        found = {TEXT: functional.pad(text, (0, 0, 0, rest)), MASK: functional.pad(mask, (0, rest))}
        sort = getattr(denoiser_of(pipeline), "by_expert", dict)  # pipelines pack the experts side by side
        return {name: tensor.cpu().contiguous() for name, tensor in sort(found).items()}

    def inputs(self, text: Text, framing: Framing) -> dict[str, Any]:
        """Text and mask, cut where the longest prompt of the batch ends."""
        mask = text[MASK]
        longest = int(mask.sum(dim=1).max())
        own = text[TEXT].unflatten(1, (-1, mask.shape[1]))[:, :, :longest]
        return {TEXT: own.flatten(1, 2), MASK: mask[:, :longest].contiguous()}

    def predict(self, denoiser: Any, noisy: Tensor, times: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The denoiser's output, back on the grid."""
        b, c, h, w = noisy.shape
        packed = denoiser(
            hidden_states=QwenImagePipeline._pack_latents(noisy, b, c, h, w),
            timestep=times / TIME_UNIT,
            img_shapes=[[(1, h // 2, w // 2)]] * b,
            **inputs,
            return_dict=False,
        )[0]
        prediction: Tensor = QwenImagePipeline._unpack_latents(packed, h, w, vae_scale_factor=1)
        return prediction[:, :, 0]

    def image_tokens(self, height: int, width: int) -> int:
        """One for every 2 x 2 latents.

        Raises:
            ValueError: they do not cover the latents.
        """
        return patches(height, width, 2)
