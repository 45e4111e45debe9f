"""Tiny real models, built in code: the same classes as Stable Diffusion's, a few thousand weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffusemble.experts.expert import Expert

WIDTH = 32  # of every text encoder
LENGTH = 16  # tokens of a prompt

UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 16, 32, 32),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
SDXL_UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "cross_attention_dim": 2 * WIDTH,
    "attention_head_dim": (2, 2, 4),
    "norm_num_groups": 8,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
}
SMALL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def randomised(model: nn.Module, seed: int = 0) -> Any:
    """``model`` in evaluation mode, with every constant tensor (zero biases, unit norms) disturbed.

    A part that starts at zero would hide a wrong wiring behind it.
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() == 1 or parameter.std() == 0:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def tiny_unet(seed: int = 0, **config: Any) -> UNet2DConditionModel:
    """An SD 1.x U-Net with four levels and 25 aggregation points; ``config`` overrides entries of ``UNET``."""
    return _unet({**UNET, **config}, seed)


def tiny_sdxl_unet(seed: int = 0, **config: Any) -> UNet2DConditionModel:
    """An SDXL U-Net with 19 aggregation points; ``config`` overrides entries of ``SDXL_UNET``."""
    return _unet({**SDXL_UNET, **config}, seed)


def small_unet(seed: int = 0, **config: Any) -> UNet2DConditionModel:
    """An SD 1.x U-Net of two levels with every kind of layer once, a quarter of ``tiny_unet``'s tensors."""
    return tiny_unet(seed, **{**SMALL, **config})


def _unet(config: dict[str, Any], seed: int) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return randomised(UNet2DConditionModel(**config), seed)


def tiny_vae(seed: int = 0, **config: Any) -> AutoencoderKL:
    """A VAE of factor 2: latents ``[b 4 h/2 w/2]``."""
    torch.manual_seed(seed)
    parts = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 16,
    }
    return randomised(AutoencoderKL(**{**parts, **config}), seed)


def tiny_tokenizer(length: int = LENGTH) -> CLIPTokenizer:
    """A CLIP tokenizer that spells: bytes, bytes that end a word, start, end."""
    letters = [chr(number) for number in range(33, 127)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=length)


def tiny_text_encoder(seed: int = 0, projection: bool = False, **config: Any) -> CLIPTextModel:
    """A CLIP text encoder for ``tiny_tokenizer``; with ``projection``, the class of SDXL's second encoder."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": WIDTH, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 3}
    settings = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=LENGTH,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{**sizes, **config},
    )
    return randomised((CLIPTextModelWithProjection if projection else CLIPTextModel)(settings), seed)


def tiny_scheduler(**config: Any) -> DDIMScheduler:
    """DDIM with the schedule of Stable Diffusion."""
    parts = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    return DDIMScheduler(**{**parts, "set_alpha_to_one": False, "steps_offset": 1, **config})


def tiny_pipeline(seed: int = 0, **parts: Any) -> StableDiffusionPipeline:
    """A Stable Diffusion 1.x pipeline with a U-Net and a text encoder of its own and the VAE of every seed.

    ``parts`` replaces components by name, as in ``tiny_pipeline(text_encoder=...)``.
    """
    default = {
        "unet": lambda: tiny_unet(seed),
        "vae": tiny_vae,
        "tokenizer": tiny_tokenizer,
        "text_encoder": lambda: tiny_text_encoder(seed),
        "scheduler": tiny_scheduler,
    }
    made = {name: parts.pop(name) if name in parts else make() for name, make in default.items()}
    pipeline = StableDiffusionPipeline(
        **made, safety_checker=None, feature_extractor=None, requires_safety_checker=False, **parts
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def small_pipeline(seed: int = 0, **parts: Any) -> StableDiffusionPipeline:
    """``tiny_pipeline`` with a ``small_unet``."""
    return tiny_pipeline(seed, **({"unet": small_unet(seed)} | parts))


def tiny_sdxl_pipeline(seed: int = 0, **parts: Any) -> StableDiffusionXLPipeline:
    """An SDXL base pipeline with two text encoders of its own and the VAE of every seed."""
    default = {
        "unet": lambda: tiny_sdxl_unet(seed),
        "vae": tiny_vae,
        "tokenizer": tiny_tokenizer,
        "tokenizer_2": tiny_tokenizer,
        "text_encoder": lambda: tiny_text_encoder(seed),
        "text_encoder_2": lambda: tiny_text_encoder(seed + 50, projection=True),
        "scheduler": tiny_scheduler,
    }
    made = {name: parts.pop(name) if name in parts else make() for name, make in default.items()}
    pipeline = StableDiffusionXLPipeline(**made, add_watermarker=False, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_refiner(seed: int = 0) -> StableDiffusionXLImg2ImgPipeline:
    """SDXL's refiner: only the second text encoder, and an aesthetic score among the added conditions."""
    added = SDXL_UNET["projection_class_embeddings_input_dim"] - SDXL_UNET["addition_time_embed_dim"]
    unet = tiny_sdxl_unet(seed, cross_attention_dim=WIDTH, projection_class_embeddings_input_dim=added)
    base = tiny_sdxl_pipeline(seed, unet=unet)
    pipeline = StableDiffusionXLImg2ImgPipeline(
        vae=base.vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=base.text_encoder_2,
        tokenizer_2=base.tokenizer_2,
        unet=unet,
        scheduler=base.scheduler,
        requires_aesthetics_score=True,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def as_expert(pipeline: Any, name: str = "expert") -> Expert:
    """The expert that a pipeline in memory is, without a source."""
    parts = {part: value for part, value in pipeline.components.items() if value is not None}
    settings = {
        key: pipeline.config[key]
        for key in ("force_zeros_for_empty_prompt", "requires_aesthetics_score", "is_distilled")
        if key in pipeline.config
    }
    denoiser = parts.pop("unet" if "unet" in parts else "transformer")
    return Expert(name, denoiser, {**parts, **settings}, type(pipeline))
