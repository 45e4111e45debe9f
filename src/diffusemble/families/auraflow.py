"""``AuraFlowTransformer2DModel`` called whole: AuraFlow and Pony v7, flows in the latent space of SDXL."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusemble.families.base import Family, longest_prompt


class AuraFlowFamily(Family):
    """T5's text, zeros where a prompt is shorter; times from 0 to 1."""

    time_unit = 1000.0

    def describe(self) -> dict[str, tuple[int, ...]]:
        """``encoder_hidden_states [s d]``."""
        width = self.denoiser.config.joint_attention_dim
        return {"encoder_hidden_states": (longest_prompt(self.expert.pipeline_class), width)}

    def read_prompts(
        self, prompts: list[str], device: torch.device, guided: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Text."""
        encoded = self.pipeline.encode_prompt(prompts, do_classifier_free_guidance=guided, device=device)
        return {"encoder_hidden_states": encoded[0]}, {"encoder_hidden_states": encoded[2]}
