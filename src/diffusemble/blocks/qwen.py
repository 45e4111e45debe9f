"""Block schedule of diffusers' ``QwenImageTransformer2DModel``: Qwen-Image, whose text may be masked."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from diffusemble.aggregators.base import Sizes
from diffusemble.blocks.base import Call, Flow, Inputs
from diffusemble.blocks.packing import unpack_text
from diffusemble.blocks.streams import (
    Constants,
    StreamBlocks,
    check_residuals,
    grid_of,
    on_grid,
    rows,
    spread_residuals,
)

_TEXT, _MASK = "encoder_hidden_states", "encoder_hidden_states_mask"


class QwenBlocks(StreamBlocks):
    """A ``QwenImageTransformer2DModel`` as a schedule of its blocks (60 in Qwen-Image).

    Latents come packed, a 2 x 2 patch a token; ``img_shapes`` says on which grid. ``Flow.text`` is the text after
    ``txt_in``.

    Raises:
        ValueError: the transformer is one for editing or for layers, which reads several pictures at once.
    """

    time_unit = 1000.0
    family = "Qwen-Image"
    needed = (_TEXT, "img_shapes")
    optional = (_MASK, "attention_kwargs", "controlnet_block_samples")
    attention_kwargs = "attention_kwargs"
    known_kwargs = ("scale",)

    def __init__(self, denoiser: Any) -> None:
        for switch in ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"):
            if denoiser.config.get(switch, False):
                raise ValueError(
                    f"Block-wise ensembles draw one picture from text, and this Qwen-Image transformer reads several "
                    f"({switch}). Use experts of Qwen-Image itself, or fuse the experts' predictions at the output."
                )
        inner = denoiser.inner_dim
        sizes = Sizes((inner, denoiser.proj_out.out_features), inner, inner, latents=denoiser.config.in_channels)
        super().__init__(denoiser, {"transformer_blocks": "joint"}, sizes)

    def read(self, arguments: Inputs) -> Call:
        """The call that ``QwenImageTransformer2DModel.forward`` gets, its latents on their grid.

        Raises:
            ValueError: ``img_shapes`` is missing or speaks of several pictures.
        """
        inputs = dict(arguments)
        latents, shapes = inputs.pop("hidden_states"), inputs.get("img_shapes") or [[]]
        first = shapes[0] if isinstance(shapes[0], list) else [shapes[0]]
        if len(first) != 1 or np.prod(first[0]) != latents.shape[1] or first[0][0] != 1:
            raise ValueError(
                f"img_shapes is {shapes!r:.80}, but a block-wise ensemble draws one picture, here of "
                f"{latents.shape[1]} tokens: give [[(1, height, width)]] with that many places. Pictures beside it "
                f"(editing) are not supported."
            )
        return Call(on_grid(latents, tuple(first[0][1:])), inputs.pop("timestep"), inputs)

    def split(self, inputs: Inputs, n: int) -> tuple[dict[str, Any], ...]:
        """Cut the packed text, and its mask where it is packed too.

        Raises:
            ValueError: the text is missing, or not packed for n experts.
        """
        own, mask = super().split(inputs, n), inputs.get(_MASK)
        if mask is None or mask.shape[1] == own[0][_TEXT].shape[1]:
            return own
        return tuple(mine | {_MASK: part} for mine, part in zip(own, unpack_text(mask, n), strict=True))

    def write(self, prediction: Tensor) -> Any:
        """The record of ``QwenImageTransformer2DModel.forward``: the prediction packed, as the latents were."""
        return super().write(rows(prediction))

    def open(self, sample: Tensor, timestep: Any, inputs: Inputs) -> Flow:
        """Embed latents, text and time.

        Raises:
            ValueError: an argument that the schedule does not know, that is missing, or that changes nothing.
        """
        model, given = self.denoiser, self._taken(inputs)
        kwargs = self._attention(given, timestep)
        image = model.img_in(rows(sample))
        text = model.txt_in(model.txt_norm(given[_TEXT]))
        time = model.time_text_embed(timestep.to(image.dtype), image)
        mask = given.get(_MASK)
        extra = Constants((None if mask is None else mask.bool(), kwargs), self._residuals(given, image.shape[1]))
        return Flow(on_grid(image, grid_of(sample)), (), time, text, extra, text, mask)

    def _call(self, name: str, image: Tensor, flow: Flow) -> tuple[Tensor | None, Tensor]:
        (block,), (mask, kwargs) = self.modules(name), flow.extra.arguments
        text: Any = flow.tokens
        # No constants of a pass: with as many text tokens as samples, `select` would take their positions for samples.
        shape = [[(1, *grid_of(flow.hidden))]]
        positions = self.denoiser.pos_embed(shape, max_txt_seq_len=text.shape[1], device=image.device)
        found: tuple[Tensor, Tensor] = self._compute(block, image, text, mask, flow.time, positions, kwargs, None)
        return found

    def _residuals(self, given: dict[str, Any], length: int) -> dict[str, Tensor]:
        samples = given.get("controlnet_block_samples")
        if samples is None:
            return {}
        check_residuals(samples, len(self.names), length, "controlnet_block_samples")
        return spread_residuals(samples, self.names)
