"""``UNet2DConditionModel`` called whole: SD 1.x, SD 2.x, SDXL, and the models distilled from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from diffusemble.families.base import Conditions, Family

AESTHETIC_SCORE = 6.0  # that a refiner is told in a pipeline that tells none; diffusers' default


class UNetFamily(Family):
    """Text, SDXL's pooled text and sizes, and the guidance embedding of latent consistency models."""

    sample = "sample"
    record = UNet2DConditionOutput
    shared = frozenset({"added_cond_kwargs", "timestep_cond"})

    def describe(self) -> dict[str, tuple[int, ...]]:
        """``encoder_hidden_states [s d]``; ``text_embeds [p]``; ``timestep_cond [g]``."""
        tokenizer = self.parts.get("tokenizer") or self.parts["tokenizer_2"]
        shapes: dict[str, tuple[int, ...]] = {
            "encoder_hidden_states": (tokenizer.model_max_length, self.denoiser.config.cross_attention_dim)
        }
        if self._pooling:
            shapes["text_embeds"] = (self.parts["text_encoder_2"].config.projection_dim,)
        if self.denoiser.config.time_cond_proj_dim is not None:
            shapes["timestep_cond"] = (self.denoiser.config.time_cond_proj_dim,)
        return shapes

    def read_prompts(
        self, prompts: list[str], device: torch.device, guided: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A model with a guidance embedding is told guidance 1, which adds nothing: guidance is the ensemble's."""
        encoded = self.pipeline.encode_prompt(
            prompt=prompts, device=device, num_images_per_prompt=1, do_classifier_free_guidance=guided
        )
        names = ("encoder_hidden_states", "text_embeds") if self._pooling else ("encoder_hidden_states",)
        given, empty = ({name: encoded[2 * place + half] for place, name in enumerate(names)} for half in range(2))
        if "timestep_cond" in self.shapes:
            (width,) = self.shapes["timestep_cond"]
            none = torch.zeros(len(prompts))  # diffusers embeds it on the CPU
            told = self.pipeline.get_guidance_scale_embedding(none, embedding_dim=width).to(device)
            given["timestep_cond"] = empty["timestep_cond"] = told
        return given, empty

    def join(self, rows: Sequence[Conditions]) -> Conditions:
        """SDXL's first text encoder reads ``prompt`` and its second one ``prompt_2``."""
        if len(rows) == 1 or self.parts.get("text_encoder") is None or not self._pooling:
            return rows[0]
        cut = self.parts["text_encoder"].config.hidden_size
        texts = [row["encoder_hidden_states"] for row in rows]
        joined = torch.cat([texts[0][..., :cut], texts[1][..., cut:]], dim=-1)
        return {**rows[1], "encoder_hidden_states": joined}

    def pooled(self, conditions: Conditions, slot: int) -> Tensor | None:
        """SDXL's pooled text."""
        return conditions.get("text_embeds")

    def arguments(self, sample: Tensor, conditions: Conditions, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Sizes for SDXL (for refiners: and a score) are those the pipeline gives, or the picture's own, uncropped; a
        guidance scale is the pipeline's, or none.
        """
        found: dict[str, Any] = {name: part for name, part in conditions.items() if name != "text_embeds"}
        if self._pooling:
            given = (inputs.get("added_cond_kwargs") or {}).get("time_ids")
            if given is None or given.shape[-1] != self._time_ids:
                height, width = self.pixels(sample)
                last = (height, width) if self._time_ids == 6 else (AESTHETIC_SCORE,)
                given = sample.new_tensor([height, width, 0, 0, *last]).expand(len(sample), -1)
            found["added_cond_kwargs"] = {"text_embeds": conditions["text_embeds"], "time_ids": given}
        if "timestep_cond" in found and inputs.get("timestep_cond") is not None:
            found["timestep_cond"] = inputs["timestep_cond"]  # the first expert is told a scale, too
        return found

    @property
    def _time_ids(self) -> int:
        """Numbers it reads of the picture: original size, corner of the crop, then size or (refiners) a score."""
        config = self.denoiser.config
        pooled = self.shapes["text_embeds"][0]
        numbers: int = (config.projection_class_embeddings_input_dim - pooled) // config.addition_time_embed_dim
        return numbers

    @property
    def _pooling(self) -> bool:
        return self.denoiser.config.addition_embed_type == "text_time"
