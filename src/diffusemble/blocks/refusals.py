"""What a U-Net's block schedule refuses: an argument that is ignored in silence gives a wrong picture."""

from __future__ import annotations

import inspect
from typing import Any

from diffusers import UNet2DConditionModel

from diffusemble.blocks.base import Inputs

_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D", "UNetMidBlock2DCrossAttn", "CrossAttnUpBlock2D", "UpBlock2D")
_ARGUMENTS = {
    "encoder_hidden_states",
    "class_labels",
    "timestep_cond",
    "attention_mask",
    "cross_attention_kwargs",
    "added_cond_kwargs",
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
    "encoder_attention_mask",
}
_ADDED = {
    "text_time": {"text_embeds", "time_ids"},
    "text_image": {"text_embeds", "image_embeds"},
    "image": {"image_embeds"},
}


def refuse_unknown_blocks(unet: UNet2DConditionModel) -> None:
    """Make sure that the schedule knows every part of ``unet``.

    Raises:
        ValueError: names the part.
    """
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        if type(block).__name__ not in _BLOCKS:
            raise ValueError(
                f"Block-wise ensembles know the U-Net blocks {', '.join(_BLOCKS)}; this U-Net has a "
                f"{type(block).__name__}. Fuse its predictions with the others' at the output instead."
            )
    if unet.config.addition_embed_type == "image_hint":
        raise ValueError(
            "Block-wise ensembles do not support addition_embed_type='image_hint' (Kandinsky 2.2 ControlNet). Fuse the "
            "experts' predictions at the output instead."
        )


def refuse_unused(unet: UNet2DConditionModel, given: Inputs) -> None:
    """Make sure that ``unet`` has a use for every given argument of its ``forward``.

    Raises:
        ValueError: names the argument that is unknown, missing, or has no weights in this U-Net.
    """
    if "encoder_hidden_states" not in given:
        raise ValueError(
            "A U-Net needs encoder_hidden_states: pass the embedded prompt [b s d] (one per expert: pack_text)."
        )
    for name in given:
        if name not in _ARGUMENTS:
            raise ValueError(
                f"A U-Net block schedule does not support the argument {name!r}. Leave it out, or run the experts one "
                f"by one and fuse their predictions."
            )
    for name, without in _without_weights(unet, given):
        raise ValueError(
            f"{name} was given, but this U-Net {without}, so it would change nothing. Leave it out, or use a U-Net "
            f"that was trained with it."
        )


def _without_weights(unet: UNet2DConditionModel, given: Inputs) -> list[tuple[str, str]]:
    missing = []
    if "class_labels" in given and unet.class_embedding is None:
        missing.append(("class_labels", "has no class embedding"))
    if "timestep_cond" in given and unet.time_embedding.cond_proj is None:
        missing.append(("timestep_cond", "has no projection for it (time_cond_proj_dim)"))
    if _of(given, "cross_attention_kwargs").get("gligen") is not None and not hasattr(unet, "position_net"):
        missing.append(("cross_attention_kwargs['gligen']", "has no GLIGEN layers (attention_type)"))
    for key in sorted(_of(given, "cross_attention_kwargs").keys() - {"scale", "gligen"}):
        processors = {type(processor) for processor in unet.attn_processors.values()}
        if not any(key in inspect.signature(processor.__call__).parameters for processor in processors):
            missing.append((f"cross_attention_kwargs[{key!r}]", "has no attention that reads it"))
    used = set(_ADDED.get(unet.config.addition_embed_type, ()))
    if unet.config.encoder_hid_dim_type in ("ip_image_proj", "image_proj", "text_image_proj"):
        used.add("image_embeds")
    for key, value in _of(given, "added_cond_kwargs").items():
        if value is not None and key not in used:
            missing.append((f"added_cond_kwargs[{key!r}]", "has no layer that reads it"))
    return missing


def _of(given: Inputs, name: str) -> dict[str, Any]:
    return given.get(name) or {}
