"""``ChromaTransformer2DModel`` called whole: Chroma1 and what was made of it, in the latent space of FLUX.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffusemble.families.base import Conditions, longest_prompt
from diffusemble.families.flux import FluxFamily, refuse_own_guidance


class ChromaFamily(FluxFamily):
    """T5's text with its mask; latents packed as FLUX's, but neither pooled text nor a guidance scale."""

    shared = frozenset({"txt_ids", "img_ids", "attention_mask"})

    def describe(self) -> dict[str, tuple[int, ...]]:
        """``encoder_hidden_states [s d]`` and ``attention_mask [s]``."""
        tokens = longest_prompt(self.expert.pipeline_class)
        width = self.denoiser.config.joint_attention_dim
        return {"encoder_hidden_states": (tokens, width), "attention_mask": (tokens,)}

    def read_prompts(
        self, prompts: list[str], device: torch.device, guided: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Text, and the mask that its pipeline makes of it; no prompt is the text of the empty one."""
        text, _, mask, *_ = self.pipeline.encode_prompt(prompts, device=device, do_classifier_free_guidance=False)
        found = {"encoder_hidden_states": text, "attention_mask": mask}
        return found, found

    def pooled(self, conditions: Conditions, slot: int) -> None:
        """None: there is no CLIP."""

    def own(self, inputs: Mapping[str, Any], conditions: Conditions) -> dict[str, Any]:
        """The pipeline's own arguments with text, places and mask of this expert alone."""
        image = inputs["img_ids"].shape[-2]
        return {**super().own(inputs, conditions), "attention_mask": _seen(conditions["attention_mask"], image)}

    def arguments(self, sample: Tensor, conditions: Conditions, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Places of text and picture, and the mask of both.

        Raises:
            ValueError: the pipeline is FLUX's, and tells it to guide by itself.
        """
        refuse_own_guidance(self.expert.name, "Chroma", inputs)
        found = super().arguments(sample, conditions, inputs)
        image = found["img_ids"].shape[-2]
        return {**found, "attention_mask": _seen(conditions["attention_mask"], image)}


def _seen(text: Tensor, image: int) -> Tensor:
    """The mask ``[b s]`` of the text, followed by ``image`` tokens that are all seen, as the pipeline has it."""
    return torch.cat([text, text.new_ones(len(text), image)], dim=1)
