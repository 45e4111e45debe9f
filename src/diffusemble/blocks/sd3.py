"""Block schedule of diffusers' ``SD3Transformer2DModel``: Stable Diffusion 3 and 3.5.

It calls the model's own blocks in the order of its ``forward`` and owns no weights.
"""

from __future__ import annotations

from typing import Any

from diffusers import SD3Transformer2DModel
from torch import Tensor

from diffusemble.aggregators.base import Sizes
from diffusemble.blocks.base import Call, Flow, Inputs
from diffusemble.blocks.packing import split_named
from diffusemble.blocks.streams import (
    Constants,
    StreamBlocks,
    check_attention_kwargs,
    check_residuals,
    on_grid,
    taken,
)

_NEEDED = ("encoder_hidden_states", "pooled_projections")
_OPTIONAL = ("block_controlnet_hidden_states", "joint_attention_kwargs", "skip_layers")
_ATTENTION = ("scale", "ip_adapter_image_embeds", "attention_mask")


class SD3Blocks(StreamBlocks):
    """An ``SD3Transformer2DModel`` as a schedule of its blocks (24 in SD 3 medium, 38 in SD 3.5 large).

    ``Flow.time`` is the time embedding with the pooled text in it, ``Flow.text`` the text after ``context_embedder``;
    both are as wide as the image tokens. Points are on the grid of patches, the last one on that of the latents.
    """

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

    def split(self, inputs: Inputs, n: int) -> tuple[Inputs, ...]:
        """Cut the packed text and the pooled text.

        Raises:
            ValueError: something of it is missing, or not packed for n experts.
        """
        taken(inputs, _NEEDED, _OPTIONAL, "SD3")
        return split_named(inputs, _NEEDED, n)

    def open(self, sample: Tensor, timestep: Any, inputs: Inputs) -> Flow:
        """Embed patches, text and time.

        Raises:
            ValueError: an argument that the schedule does not know, that is missing, or that changes nothing.
        """
        model, given = self.denoiser, taken(inputs, _NEEDED, _OPTIONAL, "SD3")
        image = model.pos_embed(sample).contiguous()
        time = model.time_text_embed(timestep, given["pooled_projections"])
        text = model.context_embedder(given["encoder_hidden_states"])
        attention = self._attention(given.get("joint_attention_kwargs"), timestep)
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

    def _attention(self, kwargs: dict[str, Any] | None, timestep: Tensor) -> dict[str, Any] | None:
        if kwargs is None:
            return None
        check_attention_kwargs(kwargs, _ATTENTION, "joint_attention_kwargs")
        kwargs = {key: value for key, value in kwargs.items() if key != "scale"}  # `active` applies the scale
        if "ip_adapter_image_embeds" in kwargs:
            projection = getattr(self.denoiser, "image_proj", None)
            if projection is None:
                raise ValueError(
                    "joint_attention_kwargs['ip_adapter_image_embeds'] was given, but this SD3 transformer has no "
                    "IP-Adapter. Load one first (pipe.load_ip_adapter), or leave the image prompt out."
                )
            states, time = projection(kwargs.pop("ip_adapter_image_embeds"), timestep)
            kwargs |= {"ip_hidden_states": states, "temb": time}
        return kwargs

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
