"""Tiny real Qwen-Image models, built in code: diffusers' and transformers' classes, few weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from tiny import randomised
from tiny_dit import tiny_flow_scheduler

WIDTH = 16  # of the text
TRANSFORMER = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 3,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (2, 2, 4),
}


def tiny_qwen(seed: int = 0, **config: Any) -> QwenImageTransformer2DModel:
    """A Qwen-Image transformer of three blocks; ``config`` overrides entries of ``TRANSFORMER``."""
    torch.manual_seed(seed)
    return randomised(QwenImageTransformer2DModel(**{**TRANSFORMER, **config}), seed)


def tiny_qwen_tokenizer() -> Qwen2Tokenizer:
    """A Qwen tokenizer that spells bytes, with the marks of a conversation."""
    letters = sorted(ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(vocab={letter: number for number, letter in enumerate(letters)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def tiny_qwen_encoder(seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL of two text layers for ``tiny_qwen_tokenizer``."""
    torch.manual_seed(seed)
    text = {
        "vocab_size": 300,
        "hidden_size": WIDTH,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "bos_token_id": 257,
        "eos_token_id": 258,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    settings = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return randomised(Qwen2_5_VLForConditionalGeneration(settings), seed)


def tiny_qwen_vae(seed: int = 0) -> AutoencoderKLQwenImage:
    """A video VAE of factor 2 for single pictures."""
    torch.manual_seed(seed)
    sizes = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [False]}
    return randomised(AutoencoderKLQwenImage(**sizes, latents_mean=[0.1] * 4, latents_std=[1.2] * 4), seed)


def tiny_qwen_pipeline(seed: int = 0, **parts: Any) -> QwenImagePipeline:
    """A Qwen-Image pipeline with a transformer and a text encoder of its own and the VAE of every seed."""
    default = {
        "transformer": lambda: tiny_qwen(seed),
        "vae": tiny_qwen_vae,
        "tokenizer": tiny_qwen_tokenizer,
        "text_encoder": lambda: tiny_qwen_encoder(seed),
        "scheduler": lambda: tiny_flow_scheduler(shift=1.0, use_dynamic_shifting=True),
    }
    made = {name: parts.pop(name) if name in parts else make() for name, make in default.items()}
    pipeline = QwenImagePipeline(**made, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
