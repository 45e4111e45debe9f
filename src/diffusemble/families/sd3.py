"""``SD3Transformer2DModel`` called whole: Stable Diffusion 3 and 3.5, medium and large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusemble.families.base import Conditions, Family, longest_prompt


class SD3Family(Family):
    """Text of two CLIP encoders side by side, followed by that of T5; and pooled text."""

    shared = frozenset({"pooled_projections"})

    def describe(self) -> dict[str, tuple[int, ...]]:
        """``encoder_hidden_states [s d]`` and ``pooled_projections [p]``."""
        config = self.denoiser.config
        tokens = longest_prompt(self.expert.pipeline_class)
        return {
            "encoder_hidden_states": (self._clip_tokens + tokens, config.joint_attention_dim),
            "pooled_projections": (config.pooled_projection_dim,),
        }

    def read_prompts(
        self, prompts: list[str], device: torch.device, guided: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Text and pooled text."""
        encoded: Any = self.pipeline.encode_prompt(
            prompts, None, None, device=device, do_classifier_free_guidance=guided
        )
        given, empty = ({name: encoded[2 * at + half] for at, name in enumerate(self.shapes)} for half in range(2))
        return given, empty

    def join(self, rows: Sequence[Conditions]) -> Conditions:
        """CLIP reads ``prompt`` and ``prompt_2``, T5 reads ``prompt_3``."""
        if len(rows) < 3:
            return rows[0]
        clip, cut = self._clip_tokens, self.parts["text_encoder"].config.hidden_size
        texts = [row["encoder_hidden_states"] for row in rows]
        first = torch.cat([texts[0][:, :clip, :cut], texts[1][:, :clip, cut:]], dim=2)
        return {
            "encoder_hidden_states": torch.cat([first, texts[2][:, clip:]], dim=1),
            "pooled_projections": torch.cat([self.pooled(row, slot) for slot, row in enumerate(rows[:2])], dim=1),
        }

    def pooled(self, conditions: Conditions, slot: int) -> Tensor:
        """The part of one CLIP encoder."""
        cut = self.parts["text_encoder"].config.projection_dim
        return conditions["pooled_projections"][:, slice(cut) if slot == 0 else slice(cut, None)]

    @property
    def _clip_tokens(self) -> int:
        tokens: int = self.parts["tokenizer"].model_max_length
        return tokens
