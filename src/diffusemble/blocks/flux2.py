"""Block schedule of diffusers' ``Flux2Transformer2DModel``: FLUX whose blocks of a kind share what the time does."""

from __future__ import annotations

from typing import Any

from torch import Tensor, cat

from diffusemble.blocks.base import Flow, Inputs
from diffusemble.blocks.flux import FluxBlocks, check_guidance
from diffusemble.blocks.streams import Constants, StreamBlocks, grid_of, on_grid, rows


class Flux2Blocks(FluxBlocks):
    """A ``Flux2Transformer2DModel`` as a schedule of its blocks (56 in FLUX.2 dev, 25 in klein 4B).

    There is no pooled text. ``Flow.time`` is the time embedding with the guidance in it, where the transformer is told
    one.
    """

    family = "FLUX.2"
    needed = ("encoder_hidden_states", "img_ids", "txt_ids")
    optional = ("guidance", "joint_attention_kwargs")
    packed = StreamBlocks.packed
    known_kwargs = ("scale", "attention_mask")

    def open(self, sample: Tensor, timestep: Any, inputs: Inputs) -> Flow:
        """Embed latents, text, time and positions.

        Raises:
            ValueError: an argument that the schedule does not know, that is missing, or that changes nothing.
        """
        model, given = self.denoiser, self._taken(inputs)
        check_guidance(model, given)
        image = model.x_embedder(rows(sample))
        told = given.get("guidance")
        time = model.time_guidance_embed(
            timestep.to(image.dtype) * 1000, None if told is None else told.to(image.dtype) * 1000
        )
        kinds = (model.double_stream_modulation_img, model.double_stream_modulation_txt, model.single_stream_modulation)
        text = model.context_embedder(given["encoder_hidden_states"])
        arguments = (self._positions(given), self._attention(given, timestep))
        extra = Constants(arguments, modulations=cat([modulation(time) for modulation in kinds], dim=1))
        return Flow(on_grid(image, grid_of(sample)), (), time, text, extra, text)

    def _call(self, name: str, image: Tensor, flow: Flow) -> tuple[Tensor | None, Tensor]:
        (block,), (stack, _), width = self.modules(name), self._places[name], self.sizes.time
        modulations: Any = flow.extra.modulations
        ours, texts, both = modulations.split((6 * width, 6 * width, 3 * width), dim=1)
        text: Any = flow.tokens
        if stack == "single_transformer_blocks":
            whole = self._compute(block, cat([text, image], dim=1), None, both, *flow.extra.arguments)
            return whole[:, : text.shape[1]], whole[:, text.shape[1] :]
        found: tuple[Tensor, Tensor] = self._compute(block, image, text, ours, texts, *flow.extra.arguments)
        return found
