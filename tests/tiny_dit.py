"""Tiny real FLUX, Chroma and SD3 models, built in code: diffusers' and transformers' classes, few weights."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from tiny import LENGTH, WIDTH, randomised, tiny_text_encoder, tiny_tokenizer, tiny_vae

T5_WIDTH = 72  # at least that of SD3's two CLIP encoders together
FLUX = {
    "in_channels": 16,  # 2 x 2 patches of the VAE's 4 channels
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 3,
    "axes_dims_rope": (2, 2, 4),
    "joint_attention_dim": T5_WIDTH,
    "pooled_projection_dim": WIDTH,
    "guidance_embeds": True,
}
SD3 = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 3,
    "joint_attention_dim": T5_WIDTH,
    "caption_projection_dim": 24,
    "pooled_projection_dim": 2 * WIDTH,
    "pos_embed_max_size": 24,
    "dual_attention_layers": (0, 1),
    "qk_norm": "rms_norm",
}


def tiny_flux(seed: int = 0, **config: Any) -> FluxTransformer2DModel:
    """A FLUX transformer of two double and three single blocks; ``config`` overrides entries of ``FLUX``."""
    torch.manual_seed(seed)
    return randomised(FluxTransformer2DModel(**{**FLUX, **config}), seed)


def tiny_sd3(seed: int = 0, **config: Any) -> SD3Transformer2DModel:
    """A Stable Diffusion 3.5 transformer of four blocks, the first two with dual attention; ``config`` overrides
    entries of ``SD3``.
    """
    torch.manual_seed(seed)
    return randomised(SD3Transformer2DModel(**{**SD3, **config}), seed)


def tiny_chroma(seed: int = 0, **config: Any) -> ChromaTransformer2DModel:
    """A Chroma transformer of two double and three single blocks; ``config`` overrides entries of ``FLUX``."""
    torch.manual_seed(seed)
    approximator = {"approximator_num_channels": 8, "approximator_hidden_dim": 12, "approximator_layers": 2}
    parts = {key: value for key, value in FLUX.items() if key not in ("pooled_projection_dim", "guidance_embeds")}
    with warnings.catch_warnings():  # diffusers builds it from a class that diffusers announces the end of
        warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)
        return randomised(ChromaTransformer2DModel(**{**parts, **approximator, **config}), seed)


def tiny_flow_vae(seed: int = 0, **config: Any) -> AutoencoderKL:
    """A VAE of factor 2 whose latents are shifted, as those of FLUX and SD3."""
    return tiny_vae(seed, **{"scaling_factor": 0.36, "shift_factor": 0.11, **config})


def tiny_t5_tokenizer(length: int = LENGTH) -> T5Tokenizer:
    """A T5 tokenizer that spells: padding, end, unknown, the start of a word, printable characters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(chr(number), -3.0) for number in range(33, 127)]
    return T5Tokenizer(vocab=[*pieces, *letters], extra_ids=0, model_max_length=length)


def tiny_t5(seed: int = 0, **config: Any) -> T5EncoderModel:
    """A T5 encoder for ``tiny_t5_tokenizer``."""
    torch.manual_seed(seed)
    sizes = {"d_model": T5_WIDTH, "d_kv": 4, "d_ff": 37, "num_layers": 2, "num_heads": 3}
    settings = T5Config(
        vocab_size=len(tiny_t5_tokenizer()), feed_forward_proj="gated-gelu", use_cache=False, **{**sizes, **config}
    )
    return randomised(T5EncoderModel(settings), seed)


def tiny_flow_scheduler(**config: Any) -> FlowMatchEulerDiscreteScheduler:
    """Euler steps along a flow, with the shift of SD3; ``use_dynamic_shifting=True`` is FLUX's."""
    return FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **config})


def tiny_flux_pipeline(seed: int = 0, **parts: Any) -> FluxPipeline:
    """A FLUX pipeline with a transformer and text encoders of its own and the VAE of every seed.

    Its sides must be multiples of 4, and always be given: FLUX's default size is for the real VAE.
    """
    default = {
        "transformer": lambda: tiny_flux(seed),
        "vae": tiny_flow_vae,
        "tokenizer": tiny_tokenizer,
        "tokenizer_2": tiny_t5_tokenizer,
        "text_encoder": lambda: tiny_text_encoder(seed),
        "text_encoder_2": lambda: tiny_t5(seed + 50),
        "scheduler": lambda: tiny_flow_scheduler(shift=1.0, use_dynamic_shifting=True),
    }
    made = {name: parts.pop(name) if name in parts else make() for name, make in default.items()}
    pipeline = FluxPipeline(**made, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_sd3_pipeline(seed: int = 0, **parts: Any) -> StableDiffusion3Pipeline:
    """A Stable Diffusion 3.5 pipeline with a transformer and three text encoders of its own and the VAE of every seed.

    ``tiny_sd3_pipeline(text_encoder_3=None, tokenizer_3=None)`` is one without T5.
    """
    default = {
        "transformer": lambda: tiny_sd3(seed),
        "vae": tiny_flow_vae,
        "tokenizer": tiny_tokenizer,
        "tokenizer_2": tiny_tokenizer,
        "tokenizer_3": tiny_t5_tokenizer,
        "text_encoder": lambda: tiny_text_encoder(seed, projection=True),
        "text_encoder_2": lambda: tiny_text_encoder(seed + 50, projection=True),
        "text_encoder_3": lambda: tiny_t5(seed + 70),
        "scheduler": tiny_flow_scheduler,
    }
    made = {name: parts.pop(name) if name in parts else make() for name, make in default.items()}
    pipeline = StableDiffusion3Pipeline(**made, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_chroma_pipeline(seed: int = 0, **parts: Any) -> ChromaPipeline:
    """A Chroma pipeline with a transformer and a T5 encoder of its own and the VAE of every seed."""
    default = {
        "transformer": lambda: tiny_chroma(seed),
        "vae": tiny_flow_vae,
        "tokenizer": tiny_t5_tokenizer,
        "text_encoder": lambda: tiny_t5(seed + 50),
        "scheduler": lambda: tiny_flow_scheduler(shift=1.0, use_dynamic_shifting=True),
    }
    made = {name: parts.pop(name) if name in parts else make() for name, make in default.items()}
    pipeline = ChromaPipeline(**made, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flux_controlnet(model: Any) -> FluxControlNetModel:
    """A ControlNet for these latents."""
    torch.manual_seed(21)
    config = {key: value for key, value in model.config.items() if not key.startswith("_") and key != "out_channels"}
    return randomised(FluxControlNetModel(**{**config, "num_layers": 1, "num_single_layers": 1}), 21)


def sd3_controlnet(model: Any) -> SD3ControlNetModel:
    """A ControlNet with residuals for half of the blocks."""
    torch.manual_seed(21)
    net = SD3ControlNetModel.from_transformer(model, num_layers=2, num_extra_conditioning_channels=0)
    return randomised(net, 21)
