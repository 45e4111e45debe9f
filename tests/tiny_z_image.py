"""Tiny real Z-Image models, built in code: diffusers' and transformers' classes, few weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ZImageControlNetModel, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from tiny import randomised
from tiny_dit import tiny_flow_scheduler, tiny_flow_vae
from tiny_qwen import tiny_qwen_tokenizer

WIDTH = 16  # of the text
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
TRANSFORMER = {
    "in_channels": 4,
    "dim": 24,
    "n_layers": 3,
    "n_refiner_layers": 1,
    "n_heads": 3,
    "n_kv_heads": 3,
    "cap_feat_dim": WIDTH,
    "axes_dims": (2, 2, 4),
    "axes_lens": (600, 64, 64),
}


def tiny_z_image(seed: int = 0, **config: Any) -> ZImageTransformer2DModel:
    """A Z-Image transformer of three layers; ``config`` overrides entries of ``TRANSFORMER``."""
    torch.manual_seed(seed)
    return randomised(ZImageTransformer2DModel(**{**TRANSFORMER, **config}), seed)


def tiny_z_image_tokenizer() -> Qwen2Tokenizer:
    """Bytes in a conversation, whose end also fills prompts up."""
    tokenizer = tiny_qwen_tokenizer()
    tokenizer.pad_token, tokenizer.chat_template = "<|im_end|>", TEMPLATE
    return tokenizer


def tiny_qwen3(seed: int = 0) -> Qwen3Model:
    """A Qwen3 of two layers for ``tiny_z_image_tokenizer``."""
    torch.manual_seed(seed)
    settings = Qwen3Config(
        vocab_size=300,
        hidden_size=WIDTH,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    return randomised(Qwen3Model(settings), seed)


def tiny_z_image_pipeline(seed: int = 0, **parts: Any) -> ZImagePipeline:
    """A Z-Image pipeline with a transformer and a text encoder of its own and the VAE of every seed."""
    default = {
        "transformer": lambda: tiny_z_image(seed),
        "vae": tiny_flow_vae,
        "tokenizer": tiny_z_image_tokenizer,
        "text_encoder": lambda: tiny_qwen3(seed),
        "scheduler": tiny_flow_scheduler,
    }
    made = {name: parts.pop(name) if name in parts else make() for name, make in default.items()}
    pipeline = ZImagePipeline(**made, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def z_image_controlnet(**config: Any) -> ZImageControlNetModel:
    """A ControlNet of two layers for these latents."""
    torch.manual_seed(21)
    sizes = {key: TRANSFORMER[key] for key in ("dim", "n_refiner_layers", "n_heads", "n_kv_heads")}
    places = {"control_layers_places": [0, 2], "control_in_dim": TRANSFORMER["in_channels"]}
    return randomised(ZImageControlNetModel(**{**sizes, **places, **config}), 21)
