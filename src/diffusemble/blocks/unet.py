"""Block schedule of diffusers' ``UNet2DConditionModel``: SD 1.x, 2.x, SDXL base and refiner.

It calls the model's own resnets, attentions and samplers in the order of its ``forward`` and owns no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers
from diffusers.utils.torch_utils import apply_freeu
from torch import Tensor, nn

from diffusemble.aggregators.base import Sizes
from diffusemble.blocks.base import Call, Feature, Flow, Inputs
from diffusemble.blocks.refusals import refuse_unknown_blocks, refuse_unused
from diffusemble.blocks.residuals import Residuals, fitting, take_residuals
from diffusemble.blocks.unet_inputs import bias, split_unet_inputs, text_width, time_width
from diffusemble.blocks.unet_parts import chain, downsample, layer_modules, run_layer


@dataclass(frozen=True)
class Conditions:
    """Per-pass constants of one U-Net: keyword arguments of its attentions, residuals to add, sizes to meet."""

    attention: Mapping[str, Any]
    residuals: Residuals
    match_skip_size: bool


@dataclass(frozen=True)
class Block:
    """One aggregation point: ``run`` computes it with the weights of ``modules``; ``keeps`` and ``drops`` say what
    happens to the skips after it.
    """

    run: Callable[[Flow], Tensor]
    channels: int
    modules: Callable[[], tuple[nn.Module, ...]]
    keeps: bool = False
    drops: bool = False


class UNetBlocks:
    """A ``UNet2DConditionModel`` as a schedule of aggregation points (25 in SD 1.x, 19 in SDXL).

    The slots coincide with those of block-weighted merging: ``conv_in``, every layer and sampler of the down path,
    ``mid``, every layer of the up path (a level's last layer together with its upsampler).

    Raises:
        ValueError: the U-Net is built from block types that this schedule does not know.
    """

    time_unit = 1.0
    time_origin = 0.0

    def __init__(self, denoiser: UNet2DConditionModel) -> None:
        self.denoiser = denoiser
        refuse_unknown_blocks(denoiser)
        # Partial functions and methods, not closures: a copied or pickled schedule must run the copied U-Net.
        self._table = {"conv_in": Block(self._run_first, denoiser.conv_in.out_channels, self._first, keeps=True)}
        for level in range(len(denoiser.down_blocks)):
            self._add_down(level)
        self._table["mid"] = Block(self._run_mid, denoiser.mid_block.resnets[-1].out_channels, self._mid)
        for level in range(len(denoiser.up_blocks)):
            self._add_up(level)
        self.names = tuple(self._table)
        channels = [block.channels for block in self._table.values()][:-1]
        self.sizes = Sizes(
            channels=(*channels, denoiser.conv_out.out_channels),
            time=time_width(denoiser),
            text=text_width(denoiser),
            latents=denoiser.config.in_channels,
        )
        self._last_down = self.names[self.names.index("mid") - 1]

    # -- the schedule ----------------------------------------------------------------------------------------------

    def _add_down(self, level: int) -> None:
        block = self.denoiser.down_blocks[level]
        for layer in range(len(block.resnets)):
            self._table[f"down.{level}.layer{layer}"] = Block(
                partial(run_layer, block, layer),
                block.resnets[layer].out_channels,
                partial(layer_modules, block, layer),
                keeps=True,
            )
        if block.downsamplers is not None:
            self._table[f"down.{level}.downsample"] = Block(
                partial(downsample, block),
                block.downsamplers[-1].out_channels,
                partial(tuple, block.downsamplers),
                keeps=True,
            )

    def _add_up(self, level: int) -> None:
        block = self.denoiser.up_blocks[level]
        for layer in range(len(block.resnets)):
            self._table[f"up.{level}.layer{layer}"] = Block(
                partial(self._run_up, block, layer),
                block.resnets[layer].out_channels,
                partial(layer_modules, block, layer, last="upsamplers"),
                drops=True,
            )

    # -- the contract ----------------------------------------------------------------------------------------------

    def read(self, arguments: Inputs) -> Call:
        """The call that ``UNet2DConditionModel.forward`` gets."""
        inputs = dict(arguments)
        return Call(inputs.pop("sample"), inputs.pop("timestep"), inputs)

    def split(self, inputs: Inputs, n: int) -> tuple[Inputs, ...]:
        """Cut the packed text, its mask and SDXL's pooled text.

        Raises:
            ValueError: there is no text, or it is not packed for n experts.
        """
        return split_unet_inputs(inputs, n)

    def write(self, prediction: Tensor) -> UNet2DConditionOutput:
        """The record of ``UNet2DConditionModel.forward``."""
        return UNet2DConditionOutput(sample=prediction)

    def modules(self, name: str) -> tuple[nn.Module, ...]:
        """The modules whose weights block ``name`` uses."""
        return self._table[name].modules()

    @contextmanager
    def active(self, inputs: Inputs) -> Iterator[None]:
        """Apply the LoRA scale of ``cross_attention_kwargs`` for one pass."""
        scale = (inputs.get("cross_attention_kwargs") or {}).get("scale", 1.0)
        scale_lora_layers(self.denoiser, scale)
        try:
            yield
        finally:
            unscale_lora_layers(self.denoiser, scale)

    def open(self, sample: Tensor, timestep: Any, inputs: Inputs) -> Flow:
        """Embed time and text, and turn masks and side inputs into what the blocks take.

        Raises:
            ValueError: an argument that the U-Net does not know, has no weights for, or cannot do without.
        """
        unet, given = self.denoiser, {k: v for k, v in inputs.items() if v is not None}
        refuse_unused(unet, given)
        text = given.pop("encoder_hidden_states")
        time = self._embed_time(sample, timestep, text, given)
        tokens = unet.process_encoder_hidden_states(text, given.pop("added_cond_kwargs", None))
        match_size = any(side % 2**unet.num_upsamplers for side in sample.shape[-2:])
        residuals = take_residuals(self.denoiser, given)
        attention = {
            "encoder_hidden_states": tokens,
            "cross_attention_kwargs": self._attention_kwargs(given.pop("cross_attention_kwargs", None)),
            "attention_mask": bias(given.pop("attention_mask", None), sample.dtype),
            "encoder_attention_mask": bias(given.pop("encoder_attention_mask", None), sample.dtype),
        }
        hidden = 2 * sample - 1.0 if unet.config.center_input_sample else sample
        extra = Conditions(attention, residuals, match_size)
        return Flow(hidden, (), time, tokens[0] if isinstance(tokens, tuple) else tokens, extra)

    def run(self, name: str, flow: Flow) -> Feature:
        """Output of block ``name`` on ``flow``."""
        return Feature(self._table[name].run(flow))

    def join(self, name: str, flow: Flow, feature: Feature) -> Flow:
        """Add T2I-adapter and ControlNet residuals that belong after ``name`` and update the skips."""
        block, residuals, hidden = self._table[name], flow.extra.residuals, feature.map
        adapter = residuals.adapter.get(name)
        # The middle takes an adapter's map only where it fits (the XL adapters have one more level than the others).
        if adapter is not None and (name != "mid" or adapter.shape == hidden.shape):
            hidden = hidden + fitting(adapter, hidden, name)
        if name == "mid" and residuals.mid is not None:
            hidden = hidden + residuals.mid
        skips = flow.skips[:-1] if block.drops else flow.skips
        if block.keeps:
            skips = (*skips, hidden)
        if name == self._last_down and residuals.skips is not None:
            skips = tuple(skip + residual for skip, residual in zip(skips, residuals.skips, strict=True))
        return Flow(hidden, skips, flow.time, flow.text, flow.extra)

    def close(self, flow: Flow) -> Tensor:
        """Final norm, activation and convolution."""
        unet, hidden = self.denoiser, flow.hidden
        if unet.conv_norm_out:
            hidden = unet.conv_act(unet.conv_norm_out(hidden))
        return unet.conv_out(hidden)

    # -- parts of the above ----------------------------------------------------------------------------------------

    def _first(self) -> tuple[nn.Module, ...]:
        return (self.denoiser.conv_in,)

    def _mid(self) -> tuple[nn.Module, ...]:
        return (self.denoiser.mid_block,)

    def _run_first(self, flow: Flow) -> Tensor:
        return self.denoiser.conv_in(flow.hidden)

    def _run_mid(self, flow: Flow) -> Tensor:
        return self.denoiser.mid_block(flow.hidden, flow.time, **flow.extra.attention)

    def _run_up(self, block: Any, layer: int, flow: Flow) -> Tensor:
        hidden, skip = flow.hidden, flow.skips[-1]
        if all(getattr(block, factor, None) for factor in ("s1", "s2", "b1", "b2")):
            # FreeU writes into the features it is given, and these belong to every expert.
            hidden, skip = apply_freeu(
                block.resolution_idx, hidden.clone(), skip, s1=block.s1, s2=block.s2, b1=block.b1, b2=block.b2
            )
        hidden = run_layer(block, layer, flow, torch.cat([hidden, skip], dim=1))
        if layer < len(block.resnets) - 1 or block.upsamplers is None:
            return hidden
        size = flow.skips[-2].shape[2:] if flow.extra.match_skip_size else None
        return chain(block.upsamplers, hidden, size)

    def _embed_time(self, sample: Tensor, timestep: Any, text: Tensor, given: dict[str, Any]) -> Tensor:
        unet = self.denoiser
        time = unet.time_embedding(unet.get_time_embed(sample, timestep), given.pop("timestep_cond", None))
        label = unet.get_class_embed(sample, given.pop("class_labels", None))
        if label is not None:
            time = torch.cat([time, label], dim=-1) if unet.config.class_embeddings_concat else time + label
        added = unet.get_aug_embed(time, text, given.get("added_cond_kwargs"))
        time = time if added is None else time + added
        return time if unet.time_embed_act is None else unet.time_embed_act(time)

    def _attention_kwargs(self, kwargs: dict[str, Any] | None) -> dict[str, Any] | None:
        if kwargs is None:
            return None
        kwargs = {key: value for key, value in kwargs.items() if key != "scale"}  # `active` applies the scale
        if kwargs.get("gligen") is not None:
            kwargs["gligen"] = {"objs": self.denoiser.position_net(**kwargs["gligen"])}
        return kwargs
