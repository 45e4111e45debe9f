"""Tiny real FLUX.2 models, built in code: diffusers' and transformers' classes, few weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from tiny import randomised
from tiny_dit import tiny_flow_scheduler
from tiny_qwen import tiny_qwen_tokenizer

LAYERS, HIDDEN = 3, 8  # of the text encoder that the pipeline reads, and their width
TEXT = LAYERS * HIDDEN
TRANSFORMER = {
    "in_channels": 16,  # 2 x 2 patches of the VAE's 4 channels
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 3,
    "joint_attention_dim": TEXT,
    "timestep_guidance_channels": 16,
    "axes_dims_rope": (2, 2, 2, 2),
    "guidance_embeds": False,  # as klein; dev has one
}
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_flux2(seed: int = 0, **config: Any) -> Flux2Transformer2DModel:
    """A FLUX.2 transformer of two double and three single blocks; ``config`` overrides entries of ``TRANSFORMER``."""
    torch.manual_seed(seed)
    return randomised(Flux2Transformer2DModel(**{**TRANSFORMER, **config}), seed)


def tiny_qwen3_tokenizer(length: int = 48) -> Qwen2Tokenizer:
    """A Qwen tokenizer that spells bytes, with a conversation around the prompt."""
    tokenizer = tiny_qwen_tokenizer()
    tokenizer.model_max_length = length
    tokenizer.chat_template = _CHAT
    return tokenizer


def tiny_qwen3(seed: int = 0) -> Qwen3ForCausalLM:
    """A Qwen3 of as many layers as the pipeline's 27th output needs, for ``tiny_qwen3_tokenizer``."""
    torch.manual_seed(seed)
    settings = Qwen3Config(
        vocab_size=300,
        hidden_size=HIDDEN,
        intermediate_size=10,
        num_hidden_layers=27,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        max_position_embeddings=128,
        bos_token_id=257,
        eos_token_id=258,
    )
    return randomised(Qwen3ForCausalLM(settings), seed)


def tiny_flux2_vae(seed: int = 0) -> AutoencoderKLFlux2:
    """A VAE of factor 2 with statistics of its patched latents."""
    torch.manual_seed(seed)
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    vae = randomised(vae, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    vae.bn.running_mean.copy_(0.2 * torch.randn(16, generator=generator))
    vae.bn.running_var.copy_(0.5 + torch.rand(16, generator=generator))
    return vae.eval()


def tiny_flux2_pipeline(seed: int = 0, **parts: Any) -> Flux2KleinPipeline:
    """A pipeline of FLUX.2 klein with a transformer and a text encoder of its own and the VAE of every seed."""
    default = {
        "transformer": lambda: tiny_flux2(seed),
        "vae": tiny_flux2_vae,
        "tokenizer": tiny_qwen3_tokenizer,
        "text_encoder": lambda: tiny_qwen3(seed),
        "scheduler": lambda: tiny_flow_scheduler(shift=3.0, use_dynamic_shifting=True),
    }
    made = {name: parts.pop(name) if name in parts else make() for name, make in default.items()}
    pipeline = Flux2KleinPipeline(**made, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
