"""``FluxTransformer2DModel`` called whole: FLUX.1 dev, schnell and what was made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor

from diffusemble.blocks.base import Call
from diffusemble.families.base import Conditions, Family, longest_prompt

PATCH = 2  # side of the squares of latents that are one token


class FluxFamily(Family):
    """T5's text and CLIP's pooled text; latents packed as tokens with their places; a guidance scale for some."""

    time_unit = 1000.0
    shared = frozenset({"pooled_projections", "txt_ids", "img_ids", "guidance"})

    def describe(self) -> dict[str, tuple[int, ...]]:
        """``encoder_hidden_states [s d]`` and ``pooled_projections [p]``."""
        config = self.denoiser.config
        tokens = longest_prompt(self.expert.pipeline_class)
        return {
            "encoder_hidden_states": (tokens, config.joint_attention_dim),
            "pooled_projections": (config.pooled_projection_dim,),
        }

    def read_prompts(
        self, prompts: list[str], device: torch.device, guided: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Text and pooled text; no prompt is the text of the empty one."""
        text, pooled, _ = self.pipeline.encode_prompt(prompts, None, device=device)
        found = {"encoder_hidden_states": text, "pooled_projections": pooled}
        return found, found

    def pooled(self, conditions: Conditions, slot: int) -> Tensor | None:
        """CLIP's."""
        return conditions["pooled_projections"]

    @property
    def channels(self) -> int:
        """Channels of the latents before they are packed."""
        channels: int = self.denoiser.config.in_channels
        return channels // PATCH**2

    def read(self, arguments: dict[str, Any]) -> Call:
        """A call with the latents back on their grid, whose size the places of the tokens tell.

        Raises:
            ValueError: there are more tokens than that, as with pictures to follow.
        """
        tokens, timestep = arguments.pop(self.sample), arguments.pop("timestep")
        rows, columns = (int(side) + 1 for side in arguments["img_ids"][:, 1:].amax(dim=0))
        if tokens.shape[1] != rows * columns:
            raise ValueError(
                f"At output level the tokens of a picture are one grid, here of {rows} x {columns}, but the pipeline "
                f"gives {tokens.shape[1]}: others describe a picture to follow (FLUX Kontext). Use FluxPipeline, or "
                f"its image to image and inpainting."
            )
        height, width = rows * PATCH, columns * PATCH
        sample = FluxPipeline._unpack_latents(tokens, height, width, vae_scale_factor=1)
        return Call(sample, timestep, arguments)

    def own(self, inputs: Mapping[str, Any], conditions: Conditions) -> dict[str, Any]:
        """The pipeline's own arguments with the text of this expert alone, and places for all its tokens.

        A guidance scale is left out where it is meant for others.
        """
        text = conditions["encoder_hidden_states"]
        places = inputs["txt_ids"].new_zeros(text.shape[1], inputs["txt_ids"].shape[-1])
        mine = {name: value for name, value in inputs.items() if name != "guidance" or self._guided}
        return {**mine, "encoder_hidden_states": text, "txt_ids": places}

    def arguments(self, sample: Tensor, conditions: Conditions, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Places of text and picture, and the guidance scale that the pipeline gives.

        It is 1, which adds nothing, in pipelines that give none: they guide by asking all experts twice.
        """
        rows, columns = (side // PATCH for side in sample.shape[-2:])
        text = conditions["encoder_hidden_states"]
        found = {
            **conditions,
            "txt_ids": text.new_zeros(text.shape[1], 3),
            "img_ids": FluxPipeline._prepare_latent_image_ids(1, rows, columns, sample.device, sample.dtype),
        }
        if self._guided:
            given = inputs.get("guidance")
            found["guidance"] = sample.new_ones(len(sample)) if given is None else given
        return found

    @property
    def _guided(self) -> bool:
        return bool(self.denoiser.config.get("guidance_embeds"))

    def predict(self, sample: Tensor, timestep: Any, arguments: Mapping[str, Any]) -> Tensor:
        """The prediction on the latents' grid."""
        output = super().predict(self.write(sample), timestep, arguments)
        height, width = sample.shape[-2:]
        grid: Tensor = FluxPipeline._unpack_latents(output, height, width, vae_scale_factor=1)
        return grid

    def write(self, prediction: Tensor) -> Tensor:
        """Packed as tokens."""
        tokens: Tensor = FluxPipeline._pack_latents(prediction, *prediction.shape)
        return tokens


def refuse_own_guidance(name: str, kind: str, inputs: Mapping[str, Any]) -> None:
    """Make sure that FLUX's pipeline leaves guidance to a second pass, for expert ``name`` that knows no other.

    Raises:
        ValueError: FLUX is told a scale.
    """
    told = inputs.get("guidance")
    if told is not None and bool((told != 1).any()):
        raise ValueError(
            f"FLUX is told guidance {float(told.flatten()[0]):g} and guides by itself, but {name!r} is a {kind}, which "
            f"is guided by a second pass alone: one of them would be guided twice, or the other not at all. Call the "
            f'pipeline with guidance_scale=1, true_cfg_scale=4, negative_prompt="" (as `diffusemble generate` does); '
            f"in training, leave embedded_guidance out."
        )
