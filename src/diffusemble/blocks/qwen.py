"""Block schedule of diffusers' ``QwenImageTransformer2DModel``: Qwen-Image, whose text may be masked."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from diffusemble.aggregators.base import Sizes
from diffusemble.blocks.base import Call, Flow, Inputs
from diffusemble.blocks.packing import split_named
from diffusemble.blocks.streams import (
    Constants,
    StreamBlocks,
    check_attention_kwargs,
    check_residuals,
    grid_of,
    on_grid,
    rows,
    taken,
)

_TEXT, _MASK = "encoder_hidden_states", "encoder_hidden_states_mask"
_NEEDED = (_TEXT, "img_shapes")
_OPTIONAL = (_MASK, "attention_kwargs", "controlnet_block_samples")


class QwenBlocks(StreamBlocks):
    """A ``QwenImageTransformer2DModel`` as a schedule of its blocks (60 in Qwen-Image).

    Latents come packed, a 2 x 2 patch a token; ``img_shapes`` says on which grid. ``Flow.text`` is the text after
    ``txt_in``.

    Raises:
        ValueError: the transformer is one for editing or for layers, which reads several pictures at once.
    """

    time_unit = 1000.0
    attention_kwargs = "attention_kwargs"

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

    def split(self, inputs: Inputs, n: int) -> tuple[Inputs, ...]:
        """Cut the packed text, and its mask where it is packed too.

        Raises:
            ValueError: the text is missing, or not packed for n experts.
        """
        taken(inputs, _NEEDED, _OPTIONAL, "Qwen-Image")
        mask = inputs.get(_MASK)
        shared = mask is None or mask.shape[1] * n == inputs[_TEXT].shape[1]
        return split_named(inputs, [_TEXT] if shared else [_TEXT, _MASK], n)

    def write(self, prediction: Tensor) -> Any:
        """The record of ``QwenImageTransformer2DModel.forward``: the prediction packed, as the latents were."""
        return super().write(rows(prediction))

    def open(self, sample: Tensor, timestep: Any, inputs: Inputs) -> Flow:
        """Embed latents, text and time.

        Raises:
            ValueError: an argument that the schedule does not know, that is missing, or that changes nothing.
        """
        model, given = self.denoiser, taken(inputs, _NEEDED, _OPTIONAL, "Qwen-Image")
        kwargs = given.get("attention_kwargs")
        if kwargs is not None:
            check_attention_kwargs(kwargs, ("scale",), "attention_kwargs")
            kwargs = {}
        image = model.img_in(rows(sample))
        text = model.txt_in(model.txt_norm(given[_TEXT]))
        time = model.time_text_embed(timestep.to(image.dtype), image)
        mask = given.get(_MASK)
        extra = Constants((None if mask is None else mask.bool(), kwargs), self._residuals(given, image.shape[1]))
        return Flow(on_grid(image, grid_of(sample)), (), time, text, extra, text, mask)

    def _call(self, name: str, image: Tensor, flow: Flow) -> tuple[Tensor | None, Tensor]:
        (block,), (mask, kwargs) = self.modules(name), flow.extra.arguments
        text: Any = flow.tokens
        shape = [[(1, *grid_of(flow.hidden))]]
        positions = self.denoiser.pos_embed(shape, max_txt_seq_len=text.shape[1], device=image.device)
        found: tuple[Tensor, Tensor] = self._compute(block, image, text, mask, flow.time, positions, kwargs, None)
        return found

    def _residuals(self, given: dict[str, Any], length: int) -> dict[str, Tensor]:
        samples = given.get("controlnet_block_samples")
        if samples is None:
            return {}
        check_residuals(samples, len(self.names), length, "controlnet_block_samples")
        interval = int(np.ceil(len(self.names) / len(samples)))
        return {name: samples[index // interval] for index, name in enumerate(self.names)}
