"""Block schedule of diffusers' ``ChromaTransformer2DModel``: FLUX whose time modulates every block by itself, and whose
text is masked.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, cat

from diffusemble.blocks.base import Flow, Inputs
from diffusemble.blocks.flux import ADDED, FluxBlocks
from diffusemble.blocks.streams import IMAGES, Constants, StreamBlocks, grid_of, on_grid, rows


class ChromaBlocks(FluxBlocks):
    """A ``ChromaTransformer2DModel`` as a schedule of its blocks (57 in Chroma1).

    There is no pooled text and no guidance embedding. ``Flow.time`` is the mean of all modulations ``[b m c]`` that the
    time makes.
    """

    family = "Chroma"
    needed = ("encoder_hidden_states", "img_ids", "txt_ids")
    optional = ("attention_mask", *ADDED)
    packed = StreamBlocks.packed
    known_kwargs = ("scale", IMAGES)

    def split(self, inputs: Inputs, n: int) -> tuple[dict[str, Any], ...]:
        """Cut the packed text, its positions and its part of the mask ``[b s + l]``.

        Raises:
            ValueError: something of it is missing, or not packed for n experts.
        """
        own = super().split(inputs, n)
        mask, length = inputs.get("attention_mask"), own[0]["encoder_hidden_states"].shape[1]
        if mask is None or mask.shape[1] == length + inputs["img_ids"].shape[-2]:
            return own
        text, image = mask[:, : n * length], mask[:, n * length :]
        return tuple(
            {**mine, "attention_mask": cat([part, image], dim=1)}
            for mine, part in zip(own, text.split(length, dim=1), strict=True)
        )

    def open(self, sample: Tensor, timestep: Any, inputs: Inputs) -> Flow:
        """Embed latents, text, time and positions.

        Raises:
            ValueError: an argument that the schedule does not know, that is missing, or that changes nothing.
        """
        model, given = self.denoiser, self._taken(inputs)
        image = model.x_embedder(rows(sample))
        modulations = model.distilled_guidance_layer(model.time_text_embed(timestep.to(image.dtype) * 1000))
        text = model.context_embedder(given["encoder_hidden_states"])
        attention = self._attention(given, timestep)
        arguments = (self._positions(given), given.get("attention_mask"), attention)
        extra = Constants(arguments, self._residuals(given, image.shape[1]), modulations=modulations)
        grid = (sample.shape[2], sample.shape[3])
        return Flow(on_grid(image, grid), (), modulations.mean(dim=1), text, extra, text)

    def close(self, flow: Flow) -> Tensor:
        """Final norm and projection."""
        model, image = self.denoiser, rows(flow.hidden)
        return on_grid(model.proj_out(model.norm_out(image, flow.extra.modulations[:, -2:])), grid_of(flow.hidden))

    def _call(self, name: str, image: Tensor, flow: Flow) -> tuple[Tensor | None, Tensor]:
        (block,), (stack, index), model = self.modules(name), self._places[name], self.denoiser
        modulations: Any = flow.extra.modulations
        text: Any = flow.tokens
        if stack == "single_transformer_blocks":
            own = modulations[:, 3 * index : 3 * index + 3]
            whole = self._compute(block, cat([text, image], dim=1), own, *flow.extra.arguments)
            return whole[:, : text.shape[1]], whole[:, text.shape[1] :]
        first = 3 * len(model.single_transformer_blocks) + 6 * index
        second = first + 6 * len(model.transformer_blocks)
        own = cat([modulations[:, first : first + 6], modulations[:, second : second + 6]], dim=1)
        found: tuple[Tensor, Tensor] = self._compute(block, image, text, own, *flow.extra.arguments)
        return found
