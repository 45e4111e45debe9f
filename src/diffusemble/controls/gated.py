"""Gated self-attention: layers that let a U-Net look at tokens of things in boxes (GLIGEN, arXiv 2301.07093)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock, GatedSelfAttentionDense
from torch import Tensor, nn


def gated(layer: GatedSelfAttentionDense, hidden: Tensor, tokens: Tensor, scale: float = 1.0) -> Tensor:
    """What a gated layer makes of the hidden state (GLIGEN, equation 8).

    v + s tanh(a) SelfAttention([v; tokens]) restricted to v, then v + s tanh(b) FeedForward(v).

    Args:
        layer: the weights; those of diffusers' class.
        hidden: visual tokens v ``[b l c]``.
        tokens: what to look at ``[b t d]``.
        scale: s; 1 as trained, 0 leaves the hidden state as it is.

    Returns:
        ``[b l c]``.
    """
    both = layer.norm1(torch.cat([hidden, layer.linear(tokens)], dim=1))
    hidden = hidden + scale * layer.alpha_attn.tanh() * layer.attn(both)[:, : hidden.shape[1]]
    return hidden + scale * layer.alpha_dense.tanh() * layer.ff(layer.norm2(hidden))


@dataclass(frozen=True)
class Look:
    """One control at work: its layers by the names of the blocks, and what they look at.

    Attributes:
        layers: gated layer of every block that has one.
        tokens: ``[b t d]``.
        scale: in front of the gates.
    """

    layers: Mapping[str, GatedSelfAttentionDense]
    tokens: Tensor
    scale: float = 1.0


class Looks:
    """All gated controls of one call.

    It stands where diffusers' U-Net expects GLIGEN's projection, and is its own result. So the blocks hand it to what
    stands where they expect their gated layers.
    """

    def __init__(self, looks: tuple[Look, ...]) -> None:
        self.looks = looks

    def __call__(self) -> Looks:
        """What the blocks are handed as tokens."""
        return self

    def apply(self, block: str, hidden: Tensor) -> Tensor:
        """The hidden state of a block after its gated layers, computed in their number type."""
        for look in self.looks:
            if block in look.layers:
                own = look.tokens.dtype
                hidden = gated(look.layers[block], hidden.to(own), look.tokens, look.scale).to(hidden.dtype)
        return hidden


def _apply(block: str, hidden: Tensor, looks: Looks) -> Tensor:
    return looks.apply(block, hidden)


@contextmanager
def looking(unet: Any, look: Look) -> Iterator[dict[str, Any]]:
    """The U-Net with these layers between self-attention and cross-attention of its blocks.

    Nothing is registered in the U-Net: its parameters, modules and attention processors stay the same throughout.

    Yields:
        The entries of ``cross_attention_kwargs`` that turn the layers on.

    Raises:
        ValueError: the U-Net has gated layers of its own, or the layers do not fit its blocks.
    """
    blocks = transformer_blocks(unet)
    _check(unet, blocks, look.layers)
    before = vars(unet).get("position_net")
    unet.position_net = Looks((*(before.looks if before else ()), look))
    for name, block in blocks.items():
        block.fuser = partial(_apply, name)
    try:
        yield {"gligen": {}}
    finally:
        if before is not None:
            unet.position_net = before
        else:
            del unet.position_net
            # With gradient checkpointing a block runs again in the backward pass, and then needs its way to the layers.
            if not (torch.is_grad_enabled() and unet.is_gradient_checkpointing):
                for block in blocks.values():
                    del block.fuser


def transformer_blocks(unet: nn.Module) -> dict[str, BasicTransformerBlock]:
    """All transformer blocks of a U-Net by their names."""
    return {name: module for name, module in unet.named_modules() if isinstance(module, BasicTransformerBlock)}


def block_sizes(unet: nn.Module) -> dict[str, tuple[int, int]]:
    """Width and number of heads of every transformer block."""
    return {name: (block.dim, block.num_attention_heads) for name, block in transformer_blocks(unet).items()}


def _check(
    unet: nn.Module, blocks: Mapping[str, BasicTransformerBlock], layers: Mapping[str, GatedSelfAttentionDense]
) -> None:
    if isinstance(getattr(unet, "position_net", None), nn.Module):
        raise ValueError(
            "This U-Net has gated layers of its own (attention_type 'gated'). Attach the control to the plain U-Net "
            "that it was made for: Stable Diffusion's own, or controls.plain_unet of the same folder."
        )
    for name, layer in layers.items():
        width, heads = layer.norm2.normalized_shape[0], layer.attn.heads
        if name not in blocks:
            raise ValueError(
                f"The control has a gated layer for {name}, which this U-Net does not have; it has "
                f"{len(blocks)} transformer blocks. Attach it to a U-Net of the shape that it was made for."
            )
        block = blocks[name]
        if (width, heads) != (block.dim, block.num_attention_heads):
            raise ValueError(
                f"The control's gated layer for {name} has {width} channels in {heads} heads, the U-Net's block "
                f"{block.dim} in {block.num_attention_heads}. Attach it to a U-Net of the shape that it was made for."
            )
