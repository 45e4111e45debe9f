"""Block schedule of diffusers' ``SD3Transformer2DModel``: Stable Diffusion 3 and 3.5.

It calls the model's own blocks in the order of its ``forward`` and owns no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from diffusemble.aggregators.base import Sizes
from diffusemble.blocks.base import Call, Flow, Inputs
from diffusemble.blocks.streams import Constants, StreamBlocks, check_residuals, on_grid


class SD3Blocks(StreamBlocks):
    """An ``SD3Transformer2DModel`` as a schedule of its blocks (24 in SD 3 medium, 38 in SD 3.5 large).

    ``Flow.time`` is the time embedding with the pooled text in it, ``Flow.text`` the text after ``context_embedder``;
    both are as wide as the image tokens. Points are on the grid of patches, the last one on that of the latents.
    """

    family = "SD3"
    needed = ("encoder_hidden_states", "pooled_projections")
    optional = ("block_controlnet_hidden_states", "joint_attention_kwargs", "skip_layers")
    packed: ClassVar[Mapping[str, str]] = {**StreamBlocks.packed, "pooled_projections": "pooled_projection_dim"}
    image_projection = "image_proj"

    def __init__(self, denoiser: SD3Transformer2DModel) -> None:
        inner = denoiser.inner_dim
        sizes = Sizes(
            channels=(inner, denoiser.out_channels),
            time=inner,
            text=denoiser.context_embedder.out_features,
            latents=denoiser.config.in_channels,
        )
        super().__init__(denoiser, {"transformer_blocks": "joint"}, sizes)

    def read(self, arguments: Inputs) -> Call:
        """The call that ``SD3Transformer2DModel.forward`` gets."""
        inputs = dict(arguments)
        return Call(inputs.pop("hidden_states"), inputs.pop("timestep"), inputs)

    def open(self, sample: Tensor, timestep: Any, inputs: Inputs) -> Flow:
        """Embed patches, text and time.

        Raises:
            ValueError: an argument that the schedule does not know, that is missing, or that changes nothing.
        """
        model, given = self.denoiser, self._taken(inputs)
        image = model.pos_embed(sample).contiguous()
        time = model.time_text_embed(timestep, given["pooled_projections"])
        text = model.context_embedder(given["encoder_hidden_states"])
        attention = self._attention(given, timestep)
        residuals = self._residuals(given.get("block_controlnet_hidden_states"), image.shape[1])
        extra = Constants((attention,), residuals, self._skipped(given.get("skip_layers")))
        patch = model.config.patch_size
        grid = (sample.shape[2] // patch, sample.shape[3] // patch)
        return Flow(on_grid(image, grid), (), time, text, extra, text)

    def close(self, flow: Flow) -> Tensor:
        """Final norm and projection; patches are laid out as latents."""
        patches, side = super().close(flow), self.denoiser.config.patch_size
        b, _, h, w = patches.shape
        cells = patches.unflatten(1, (side, side, -1)).permute(0, 3, 4, 1, 5, 2)
        return cells.reshape(b, -1, h * side, w * side)

    def _image_prompt(self, projection: nn.Module, images: Any, timestep: Tensor) -> dict[str, Any]:
        states, time = projection(images, timestep)
        return {"ip_hidden_states": states, "temb": time}

    def _residuals(self, samples: Any, length: int) -> dict[str, Tensor]:
        if samples is None:
            return {}
        check_residuals(samples, len(self.names), length, "block_controlnet_hidden_states")
        interval = len(self.names) / len(samples)
        # The last block, which ends the text stream, gets none.
        return {
            name: samples[int(index / interval)]
            for index, name in enumerate(self.names)
            if not self.denoiser.transformer_blocks[index].context_pre_only
        }

    def _skipped(self, layers: Any) -> frozenset[str]:
        for layer in layers or ():
            if not 0 <= layer < len(self.names):
                raise ValueError(
                    f"skip_layers names block {layer}, but this SD3 transformer has the blocks 0 to "
                    f"{len(self.names) - 1}. Name blocks that are there."
                )
        return frozenset(self.names[layer] for layer in layers or ())
