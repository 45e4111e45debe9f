"""What a U-Net's ``forward`` is given: widths of its conditions, masks as biases, conditions of several experts."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from diffusemble.blocks.base import Inputs
from diffusemble.blocks.packing import split_named, unpack_text


def split_unet_inputs(inputs: Inputs, n: int) -> tuple[dict[str, Any], ...]:
    """One set of inputs per expert: text, its mask and SDXL's pooled text are cut, everything else is shared.

    Raises:
        ValueError: there is no text, or it is not packed for n experts.
    """
    if inputs.get("encoder_hidden_states") is None:
        raise ValueError("An ensemble needs encoder_hidden_states: pass pack_text([...]), one embedding per expert.")
    own = split_named(inputs, {"encoder_hidden_states": None}, n)
    mask, added = inputs.get("encoder_attention_mask"), inputs.get("added_cond_kwargs")
    if mask is not None and mask.shape[1] != own[0]["encoder_hidden_states"].shape[1]:
        for mine, part in zip(own, unpack_text(mask, n), strict=True):
            mine["encoder_attention_mask"] = part
    if added is not None and added.get("text_embeds") is not None:
        for mine, part in zip(own, unpack_text(added["text_embeds"], n), strict=True):
            mine["added_cond_kwargs"] = {**added, "text_embeds": part}
    return own


def time_width(unet: UNet2DConditionModel) -> int:
    """Width of the time embedding that a U-Net's blocks read."""
    width = unet.time_embedding.linear_2.out_features
    return 2 * width if unet.class_embedding is not None and unet.config.class_embeddings_concat else width


def text_width(unet: UNet2DConditionModel) -> int:
    """Width of the text embedding that a U-Net's blocks read."""
    width = unet.config.cross_attention_dim
    return width if isinstance(width, int) else width[0]


def bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Attention bias ``[b 1 k]`` of a mask ``[b k]`` (1 = keep, 0 = discard)."""
    return None if mask is None else ((1 - mask.to(dtype)) * -10000.0).unsqueeze(1)
