"""``PixArtTransformer2DModel`` called whole: PixArt-α (the VAE of SD 1.x) and PixArt-Σ (that of SDXL)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffusemble.families.base import Conditions, Family, longest_prompt


class PixArtFamily(Family):
    """T5's text with its mask; the large PixArt-α models also read the picture's size."""

    shared = frozenset({"added_cond_kwargs", "encoder_attention_mask"})

    def describe(self) -> dict[str, tuple[int, ...]]:
        """``encoder_hidden_states [s d]`` and ``encoder_attention_mask [s]``."""
        tokens = longest_prompt(self.expert.pipeline_class)
        width = self.denoiser.config.caption_channels
        return {"encoder_hidden_states": (tokens, width), "encoder_attention_mask": (tokens,)}

    def read_prompts(
        self, prompts: list[str], device: torch.device, guided: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Text and mask."""
        encoded = self.pipeline.encode_prompt(prompts, do_classifier_free_guidance=guided, device=device)
        given, empty = (dict(zip(self.shapes, encoded[at : at + 2], strict=True)) for at in (0, 2))
        return given, empty

    def own(self, inputs: Mapping[str, Any], conditions: Conditions) -> dict[str, Any]:
        """The pipeline's own arguments with text and mask of this expert alone."""
        return {**inputs, **conditions}

    def arguments(self, sample: Tensor, conditions: Conditions, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Size in pixels, and height over width, for models that ask for them."""
        height, width = self.pixels(sample)
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.denoiser.use_additional_conditions:
            added = {
                "resolution": sample.new_tensor([height, width]).expand(len(sample), -1),
                "aspect_ratio": sample.new_tensor([height / width]).expand(len(sample), -1),
            }
        return {**conditions, "added_cond_kwargs": added}
