"""What a denoiser is called with, as an example: for counting operations and memory without a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from diffusemble.blocks.base import Call

CLIP_PROMPT = 77
"""Tokens of CLIP's prompts."""

LONG_PROMPT, SD3_PROMPT = 512, 256
"""Tokens of T5, which has no length of its own, in FLUX's and in SD3's pipeline."""


def example(denoiser: Any, latents: tuple[int, int], batch: int, clip_tokens: int = CLIP_PROMPT) -> Call:
    """A call of one denoiser of type and device of its weights, all zeros, with a prompt of usual length.

    Args:
        denoiser: a diffusers denoiser.
        latents: height and width of the latents, before any packing.
        batch: pictures.
        clip_tokens: length of a CLIP prompt.

    Raises:
        ValueError: nothing is known about this class of denoisers.
    """
    kind = type(denoiser).__name__
    if kind not in _INPUTS:
        raise ValueError(
            f"To count memory or operations one must know what a {kind} is called with; known are "
            f"{', '.join(_INPUTS)}. Count for one of these, or give a memory plan yourself (make_plan)."
        )
    like = next(denoiser.parameters())

    def zeros(*shape: int) -> Tensor:
        return like.new_zeros(batch, *shape)

    call: Call = _INPUTS[kind](denoiser.config, latents, clip_tokens, zeros)
    return call


Zeros = Callable[..., Tensor]  # of a shape, for every picture


def _unet(config: Any, latents: tuple[int, int], clip_tokens: int, zeros: Zeros) -> Call:
    width = config.cross_attention_dim
    inputs: dict[str, Any] = {
        "encoder_hidden_states": zeros(clip_tokens, width if isinstance(width, int) else width[0])
    }
    if config.addition_embed_type == "text_time":
        # Base and refiner have different numbers of ids; only the sum of the widths matters here.
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": zeros(pooled), "time_ids": zeros(6)}
    return Call(zeros(config.in_channels, *latents), zeros(), inputs)


def _flux(config: Any, latents: tuple[int, int], clip_tokens: int, zeros: Zeros) -> Call:
    height, width, axes = latents[0] // 2, latents[1] // 2, len(config.axes_dims_rope)
    inputs = {
        "encoder_hidden_states": zeros(LONG_PROMPT, config.joint_attention_dim),
        "img_ids": zeros(height * width, axes)[0],
        "txt_ids": zeros(LONG_PROMPT, axes)[0],
    }
    if "pooled_projection_dim" in config:  # Chroma and FLUX.2 have none
        inputs["pooled_projections"] = zeros(config.pooled_projection_dim)
    if config.get("guidance_embeds", False):
        inputs["guidance"] = zeros()
    return Call(zeros(config.in_channels, height, width), zeros(), inputs)


def _sd3(config: Any, latents: tuple[int, int], clip_tokens: int, zeros: Zeros) -> Call:
    inputs = {
        "encoder_hidden_states": zeros(clip_tokens + SD3_PROMPT, config.joint_attention_dim),
        "pooled_projections": zeros(config.pooled_projection_dim),
    }
    return Call(zeros(config.in_channels, *latents), zeros(), inputs)


def _qwen(config: Any, latents: tuple[int, int], clip_tokens: int, zeros: Zeros) -> Call:
    height, width = latents[0] // 2, latents[1] // 2
    inputs = {
        "encoder_hidden_states": zeros(LONG_PROMPT, config.joint_attention_dim),
        "img_shapes": [[(1, height, width)]],
    }
    return Call(zeros(config.in_channels, height, width), zeros(), inputs)


def _z_image(config: Any, latents: tuple[int, int], clip_tokens: int, zeros: Zeros) -> Call:
    captions = list(zeros(LONG_PROMPT, config.cap_feat_dim).unbind())
    return Call(zeros(config.in_channels, *latents), zeros(), {"cap_feats": captions})


_INPUTS: Mapping[str, Any] = {
    "UNet2DConditionModel": _unet,
    "ControlNetModel": _unet,
    "ControlNetUnionModel": _unet,
    "FluxTransformer2DModel": _flux,
    "Flux2Transformer2DModel": _flux,
    "FluxControlNetModel": _flux,
    "ChromaTransformer2DModel": _flux,
    "QwenImageTransformer2DModel": _qwen,
    "SD3Transformer2DModel": _sd3,
    "SD3ControlNetModel": _sd3,
    "ZImageTransformer2DModel": _z_image,
}
