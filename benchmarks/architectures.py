"""Published architectures at their real sizes: configurations alone, for models with random weights or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
import transformers
from cost import SDXL
from torch import nn

from diffusemble.experts.expert import Expert

Config = Mapping[str, Any]

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "use_cache": False,
}
QWEN3_4B = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
    "force_upcast": False,
}
WIDE_VAE = {**VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False, "sample_size": 1024}
FLUX2_VAE = {key: value for key, value in VAE.items() if key != "force_upcast"} | {"sample_size": 1024}
KLEIN = {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
REFINER = {
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "attention_head_dim": (6, 12, 24, 24),
    "cross_attention_dim": 1280,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2560,
    "sample_size": 128,
}
FLUX = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
SD3 = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
SD35_MEDIUM = {
    **SD3,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}
SD35_LARGE = {
    **SD3,
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "qk_norm": "rms_norm",
}


@dataclass(frozen=True)
class Architecture:
    """A published model.

    Attributes:
        kind: diffusers' class of its denoiser.
        denoiser: the denoiser's configuration.
        parameters: of the denoiser, as published models have them.
        latents: side of the latents of a picture of its own size.
        vae: the VAE's configuration.
        encoders: text encoders as (transformers' class, configuration).
        vae_kind: diffusers' class of the VAE.
    """

    kind: str
    denoiser: Config
    parameters: int
    latents: int
    vae: Config = field(default_factory=lambda: VAE)
    encoders: tuple[tuple[str, Config], ...] = (("CLIPTextModel", CLIP_L),)
    vae_kind: str = "AutoencoderKL"

    def build(self) -> Any:
        """The denoiser, with random weights on torch's default device."""
        return getattr(diffusers, self.kind)(**self.denoiser).eval()

    def experts(self, n: int, dtype: torch.dtype) -> list[Expert]:
        """``n`` experts with text encoders of their own and one VAE."""
        vae = _typed(getattr(diffusers, self.vae_kind)(**self.vae), dtype)
        return [Expert(f"expert {i}", _typed(self.build(), dtype), {"vae": vae, **self._text(dtype)}) for i in range(n)]

    def _text(self, dtype: torch.dtype) -> dict[str, nn.Module]:
        made = {}
        for number, (kind, config) in enumerate(self.encoders, start=1):
            settings = getattr(transformers, _SETTINGS.get(kind, "CLIPTextConfig"))(**config)
            name = "text_encoder" if number == 1 else f"text_encoder_{number}"
            made[name] = _typed(getattr(transformers, kind)(settings), dtype)
        return made


def _typed(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return nn.Module.to(model, dtype).eval().requires_grad_(False)


_SETTINGS = {"T5EncoderModel": "T5Config", "Qwen3Model": "Qwen3Config", "Qwen3ForCausalLM": "Qwen3Config"}
_UNET, _FLUX, _SD3 = "UNet2DConditionModel", "FluxTransformer2DModel", "SD3Transformer2DModel"
_THREE = (
    ("CLIPTextModelWithProjection", {**CLIP_L, "projection_dim": 768}),
    ("CLIPTextModelWithProjection", CLIP_G),
    ("T5EncoderModel", T5_XXL),
)
_TWO = (("CLIPTextModel", CLIP_L), ("CLIPTextModelWithProjection", CLIP_G))
_SDXL_VAE = {**VAE, "sample_size": 1024, "force_upcast": True}

ARCHITECTURES: Mapping[str, Architecture] = {
    "sd15": Architecture(_UNET, {"cross_attention_dim": 768, "sample_size": 64}, 859_520_964, 64),
    "sd21": Architecture(
        _UNET,
        {
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "sample_size": 96,
            "use_linear_projection": True,
        },
        865_910_724,
        96,
        encoders=(("CLIPTextModel", CLIP_H),),
    ),
    "sdxl": Architecture(_UNET, {**SDXL, "sample_size": 128}, 2_567_463_684, 128, _SDXL_VAE, _TWO),
    "sdxl-refiner": Architecture(_UNET, REFINER, 2_259_526_660, 128, _SDXL_VAE, _TWO[1:]),
    "flux-dev": Architecture(
        _FLUX, FLUX, 11_901_408_320, 128, WIDE_VAE, (("CLIPTextModel", CLIP_L), ("T5EncoderModel", T5_XXL))
    ),
    "flux2-klein": Architecture(
        "Flux2Transformer2DModel",
        KLEIN,
        3_875_544_576,
        128,
        FLUX2_VAE,
        (("Qwen3ForCausalLM", QWEN3_4B),),
        "AutoencoderKLFlux2",
    ),
    "sd3-medium": Architecture(_SD3, SD3, 2_028_328_000, 128, WIDE_VAE, _THREE),
    "sd35-medium": Architecture(_SD3, SD35_MEDIUM, 2_243_171_520, 128, WIDE_VAE, _THREE),
    "sd35-large": Architecture(_SD3, SD35_LARGE, 8_056_627_520, 128, WIDE_VAE, _THREE),
    "z-image": Architecture("ZImageTransformer2DModel", {}, 6_154_908_736, 128, WIDE_VAE, (("Qwen3Model", QWEN3_4B),)),
}
