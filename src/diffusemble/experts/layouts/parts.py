"""Under which names the parts of a pipeline can lie in a single file."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from diffusemble.experts.formats.contents import VAE_STARTS
from diffusemble.experts.formats.families import PREFIXES
from diffusemble.experts.layouts.autoencoder import flux2_vae, mixed_vae, older_vae, vae
from diffusemble.experts.layouts.flux import chroma, flux, flux2, with_weights
from diffusemble.experts.layouts.origin import Layout, same
from diffusemble.experts.layouts.sd3 import sd3
from diffusemble.experts.layouts.text_encoder import bare_clip, clip, embedding_t5, open_clip, open_clip_with_layer, t5
from diffusemble.experts.layouts.unet import unet
from diffusemble.experts.layouts.z_image import qwen3, z_image

ORIGINAL: dict[str, Layout] = {
    "UNet2DConditionModel": unet,
    "FluxTransformer2DModel": flux,
    "Flux2Transformer2DModel": flux2,
    "ChromaTransformer2DModel": chroma,
    "SD3Transformer2DModel": sd3,
    "ZImageTransformer2DModel": z_image,
}
"""Layouts of the original codes, by diffusers' class."""
_NEWER: dict[Layout, list[Layout]] = {
    layout: [partial(with_weights, layout, norms) for norms in ("(?:query|key)_norm", "")]
    for layout in (flux, flux2, chroma)
}
READABLE_VAES = ("AutoencoderKL", "AutoencoderKLFlux2")
"""Classes of VAEs whose layouts are known; Qwen-Image's is another."""
UNUSED = ("norm_final.weight",)
"""Tensors of original codes that nothing reads (Z-Image)."""
_CLIP_L, _CLIP_G, _T5 = (f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_g", "t5xxl"))
_TEXT: dict[str, tuple[tuple[str, Layout], ...]] = {
    "text_encoder": (
        ("cond_stage_model.transformer.", clip),
        ("cond_stage_model.transformer.", bare_clip),
        ("cond_stage_model.model.", open_clip),
        ("conditioner.embedders.0.transformer.", clip),
        ("conditioner.embedders.0.model.", open_clip),
        (_CLIP_L, clip),
        ("text_encoders.qwen3_4b.transformer.", qwen3),
    ),
    "text_encoder_2": (
        ("conditioner.embedders.1.model.", open_clip),
        ("conditioner.embedders.1.model.", open_clip_with_layer),
        ("conditioner.embedders.0.model.", open_clip),
        ("conditioner.embedders.0.model.", open_clip_with_layer),
        (_CLIP_G, clip),
    ),
    "text_encoder_3": (),
}


def denoiser_layouts(model: nn.Module) -> list[tuple[str, Layout]]:
    """Prefixes and layouts that a denoiser can have in a file."""
    original = ORIGINAL.get(type(model).__name__)
    layouts = [same] if original is None else [original, *_NEWER.get(original, ()), same]
    return [(prefix, layout) for layout in layouts for prefix in PREFIXES]


def vae_layouts(alone: bool = False) -> list[tuple[str, Layout]]:
    """Prefixes and layouts that a VAE can have in a checkpoint, or in a file of its own."""
    prefixes = ("", *VAE_STARTS) if alone else VAE_STARTS
    return [(prefix, layout) for layout in (vae, same, older_vae, mixed_vae, flux2_vae) for prefix in prefixes]


def text_layouts(part: str, model: nn.Module) -> list[tuple[str, Layout]]:
    """Prefixes and layouts that a text encoder can have in a checkpoint."""
    if _is_t5(model):
        return [(prefix, layout) for layout in (t5, embedding_t5) for prefix in (_T5, f"{part}.")]
    return [*_TEXT[part], (f"{part}.", same)]


def known_tensors(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Tensors of a part that do not come from the file, because they are known; ``prefix`` says which code wrote it."""
    state = model.state_dict()
    if prefix == _CLIP_L and "text_projection.weight" in state:
        # The original code of SD3 uses the first encoder's pooled output as it is.
        return {"text_projection.weight": torch.eye(*state["text_projection.weight"].shape)}
    return {}


def _is_t5(model: nn.Module) -> bool:
    return getattr(getattr(model, "config", None), "model_type", "") == "t5"
