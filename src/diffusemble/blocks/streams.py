"""What the block schedules of diffusion transformers share: image tokens on their grid beside a stream of text tokens.

A transformer keeps its image as tokens ``[b l c]`` in rows of the grid, which is the memory order of a map
``[b c h w]`` with channels last: going from one to the other copies nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers
from torch import Tensor, nn

from diffusemble.aggregators.base import Sizes
from diffusemble.blocks.base import Feature, Flow, Inputs
from diffusemble.blocks.packing import split_named

Grid = tuple[int, int]
IMAGES = "ip_adapter_image_embeds"


@dataclass(frozen=True)
class Constants:
    """What stays the same during a pass.

    Attributes:
        arguments: what every block takes after image tokens, text tokens and time.
        residuals: what a ControlNet adds after a block, ``[b l c]`` by the block's name.
        skipped: names of the blocks that leave everything as it is.
        modulations: what the time does to all blocks, where it is computed at once (Chroma, FLUX.2).
    """

    arguments: tuple[Any, ...] = ()
    residuals: Mapping[str, Tensor] | None = None
    skipped: frozenset[str] = frozenset()
    modulations: Tensor | None = None


class StreamBlocks:
    """A transformer whose blocks take image tokens and text tokens and return both, as a schedule of its blocks.

    There is one aggregation point after each block. Embeddings belong to no block, so every expert brings its own first
    image tokens. The last point is the prediction.

    Attributes:
        family: what messages call the transformer.
        needed, optional: arguments of its ``forward`` beside the sample and the timestep.
        packed: those that hold one part per expert, and the entry of its configuration that says how wide a part is.
        attention_kwargs: the one among them that goes to the attentions.
        known_kwargs: entries of ``attention_kwargs`` that something reads.
        image_projection: where an IP-Adapter keeps what projects its pictures.

    Args:
        denoiser: the transformer.
        stacks: its lists of blocks by the attribute that holds them, and what the blocks of each are called.
        sizes: see ``Blocks``, where ``channels`` is the width of the image tokens and that of the prediction.
    """

    time_unit = 1.0
    time_origin = 0.0
    family: str
    needed: tuple[str, ...]
    optional: tuple[str, ...]
    packed: ClassVar[Mapping[str, str]] = {"encoder_hidden_states": "joint_attention_dim"}
    attention_kwargs = "joint_attention_kwargs"
    known_kwargs: tuple[str, ...] = ("scale", IMAGES)
    image_projection = ""

    def __init__(self, denoiser: Any, stacks: Mapping[str, str], sizes: Sizes) -> None:
        self.denoiser = denoiser
        # Places, not modules: a copied or pickled schedule must run the copied transformer.
        self._places = {
            f"{name}.{index}": (attribute, index)
            for attribute, name in stacks.items()
            for index in range(len(getattr(denoiser, attribute)))
        }
        self.names = tuple(self._places)
        inner, prediction = sizes.channels
        self.sizes = replace(sizes, channels=(inner,) * (len(self.names) - 1) + (prediction,))

    # -- the contract, as far as all of them share it --------------------------------------------------------------

    def split(self, inputs: Inputs, n: int) -> tuple[dict[str, Any], ...]:
        """Cut what is packed.

        Raises:
            ValueError: something of it is missing, or not packed for n experts.
        """
        self._taken(inputs)
        return split_named(inputs, {name: self.denoiser.config[width] for name, width in self.packed.items()}, n)

    def write(self, prediction: Tensor) -> Transformer2DModelOutput:
        """The record of the transformer's ``forward``."""
        return Transformer2DModelOutput(sample=prediction)

    def modules(self, name: str) -> tuple[nn.Module, ...]:
        """The transformer block that block ``name`` is."""
        attribute, index = self._places[name]
        return (getattr(self.denoiser, attribute)[index],)

    @contextmanager
    def active(self, inputs: Inputs) -> Iterator[None]:
        """Apply the LoRA scale of the attention's keyword arguments for one pass."""
        scale = (inputs.get(self.attention_kwargs) or {}).get("scale", 1.0)
        scale_lora_layers(self.denoiser, scale)
        try:
            yield
        finally:
            unscale_lora_layers(self.denoiser, scale)

    def run(self, name: str, flow: Flow) -> Feature:
        """Image and text tokens after block ``name``."""
        if name in flow.extra.skipped:
            return Feature(flow.hidden, flow.tokens)
        tokens, image = self._call(name, rows(flow.hidden), flow)
        return Feature(on_grid(image, grid_of(flow.hidden)), tokens)

    def join(self, name: str, flow: Flow, feature: Feature) -> Flow:
        """Add the ControlNet residual that belongs after ``name``."""
        hidden, residual = feature.map, (flow.extra.residuals or {}).get(name)
        if residual is not None:
            hidden = hidden + on_grid(residual, grid_of(hidden))
        return replace(flow, hidden=hidden, tokens=feature.tokens)

    def close(self, flow: Flow) -> Tensor:
        """Final norm and projection: one patch ``[p·p·c]`` at every place of the grid."""
        model = self.denoiser
        return on_grid(model.proj_out(model.norm_out(rows(flow.hidden), flow.time)), grid_of(flow.hidden))

    # -- parts of opening ------------------------------------------------------------------------------------------

    def _taken(self, inputs: Inputs) -> dict[str, Any]:
        """The inputs that were given.

        Raises:
            ValueError: one of those ``needed`` is missing, or one is not among those that the schedule knows.
        """
        given = {name: value for name, value in inputs.items() if value is not None}
        for name in self.needed:
            if name not in given:
                raise ValueError(
                    f"{self.family} needs {name}. Pass it as to the transformer itself (one per expert: pack_text)."
                )
        for name in given:
            if name not in (*self.needed, *self.optional):
                raise ValueError(
                    f"A {self.family} block schedule does not support the argument {name!r}. Leave it out, or run the "
                    f"experts one by one and fuse their predictions."
                )
        return given

    def _attention(self, given: Mapping[str, Any], timestep: Tensor) -> dict[str, Any] | None:
        """What the attentions are given, with an IP-Adapter's pictures projected.

        Raises:
            ValueError: an entry that no attention reads; names it.
        """
        if self.attention_kwargs not in given:
            return None
        # `active` applies the scale
        kwargs = {name: value for name, value in given[self.attention_kwargs].items() if name != "scale"}
        for name in kwargs:
            if name not in self.known_kwargs:
                raise ValueError(
                    f"{self.attention_kwargs}[{name!r}] was given, but no attention of this transformer reads it, so "
                    f"it would change nothing. Leave it out; known are: {', '.join(self.known_kwargs)}."
                )
        if IMAGES in kwargs:
            projection = getattr(self.denoiser, self.image_projection, None)
            if projection is None:
                raise ValueError(
                    f"{self.attention_kwargs}[{IMAGES!r}] was given, but this {self.family} transformer has no "
                    f"IP-Adapter. Load one first (pipe.load_ip_adapter), or leave the image prompt out."
                )
            kwargs |= self._image_prompt(projection, kwargs.pop(IMAGES), timestep)
        return kwargs

    # -- what architectures differ in ------------------------------------------------------------------------------

    def _image_prompt(self, projection: nn.Module, images: Any, timestep: Tensor) -> dict[str, Any]:
        """What the attentions are given of an IP-Adapter's pictures."""
        return {"ip_hidden_states": projection(images)}

    def _call(self, name: str, image: Tensor, flow: Flow) -> tuple[Tensor | None, Tensor]:
        """Text and image tokens after one block."""
        (block,) = self.modules(name)
        found: tuple[Tensor | None, Tensor] = self._compute(block, image, flow.tokens, flow.time, *flow.extra.arguments)
        return found

    def _compute(self, block: nn.Module, *arguments: Any) -> Any:
        """Call a block; with gradient checkpointing it is run again in the backward pass."""
        if torch.is_grad_enabled() and self.denoiser.gradient_checkpointing:
            return self.denoiser._gradient_checkpointing_func(block, *arguments)
        return block(*arguments)


# -- tokens and maps ---------------------------------------------------------------------------------------------------


def on_grid(tokens: Tensor, grid: Grid) -> Tensor:
    """Image tokens ``[b l c]`` as a map ``[b c h w]`` with l = h·w, without a copy."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def rows(hidden: Tensor) -> Tensor:
    """A map ``[b c h w]`` as image tokens ``[b l c]`` in one piece; without a copy where the map is a view of such."""
    return hidden.flatten(2).transpose(1, 2).contiguous()


def grid_of(hidden: Tensor) -> Grid:
    """Height and width of a map ``[b c h w]``."""
    return hidden.shape[2], hidden.shape[3]


# -- residuals ---------------------------------------------------------------------------------------------------------


def spread_residuals(samples: Sequence[Tensor], names: Sequence[str], cycle: bool = False) -> dict[str, Tensor]:
    """A ControlNet's residuals by the block after which each is added: in stretches, or in turn (``cycle``)."""
    stretch = math.ceil(len(names) / len(samples))
    return {name: samples[i % len(samples) if cycle else i // stretch] for i, name in enumerate(names)}


def check_residuals(residuals: Sequence[Tensor], blocks: int, length: int, argument: str) -> None:
    """Make sure a ControlNet's residuals fit the blocks and the image tokens they are added to.

    Raises:
        ValueError: there are none, more than blocks, or some of another length.
    """
    if not 0 < len(residuals) <= blocks:
        raise ValueError(
            f"{argument} has {len(residuals)} tensors, but this transformer has {blocks} blocks that take them: give 1 "
            f"to {blocks}. Use a ControlNet made for this architecture."
        )
    for residual in residuals:
        if residual.shape[1] != length:
            raise ValueError(
                f"{argument} has a tensor of shape {tuple(residual.shape)}, but the image has {length} tokens. Give "
                f"the ControlNet latents of the size that is drawn."
            )
