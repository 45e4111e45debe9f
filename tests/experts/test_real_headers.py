"""Headers of files of real size: the families by their real widths, and published numbers of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel, UNet2DConditionModel, ZImageTransformer2DModel

from diffusemble.experts.formats.contents import contents_of
from diffusemble.experts.formats.header import Form, Header
from diffusemble.experts.layouts.parts import ORIGINAL

SD = {"cross_attention_dim": 768, "attention_head_dim": 8}
SD2 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
XL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "use_linear_projection": True}
SDXL = {
    **XL,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "projection_class_embeddings_input_dim": 2816,
}
REFINER = {
    **XL,
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "cross_attention_dim": 1280,
    "attention_head_dim": (6, 12, 24, 24),
    "projection_class_embeddings_input_dim": 2560,
}


@pytest.mark.parametrize(
    ("build", "family", "count"),
    [
        (lambda: UNet2DConditionModel(**SD), "SD 1.x", 859_520_964),
        (lambda: UNet2DConditionModel(**SD2), "SD 2.x", 865_910_724),
        (lambda: UNet2DConditionModel(**SDXL), "SDXL", 2_567_463_684),
        (lambda: UNet2DConditionModel(**REFINER), "SDXL refiner", None),
        (lambda: FluxTransformer2DModel(guidance_embeds=True), "FLUX.1", 11_901_408_320),
        (ZImageTransformer2DModel, "Z-Image", 6_154_908_736),
    ],
    ids=["sd1", "sd2", "sdxl", "refiner", "flux", "z-image"],
)
def test_a_denoiser_of_real_size_is_recognised(build: Callable[[], Any], family: str, count: int | None) -> None:
    with init_empty_weights():
        model = build()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    forms = {}
    for name, origin in ORIGINAL[type(model).__name__](model, shapes).items():
        rows = (sum(origin.rows),) if origin.rows else shapes[name][:1]
        forms["model.diffusion_model." + origin.key] = Form("F16", (*rows, *shapes[name][1:]))
    contents = contents_of(Header(Path("real.safetensors"), 0, forms))
    assert (contents.kind, contents.family, contents.layout) == ("checkpoint", family, "original")
    assert count is None or sum(math.prod(form.shape) for form in forms.values()) == count
    own = contents_of(Header(Path("real.safetensors"), 0, {name: Form("F16", shape) for name, shape in shapes.items()}))
    assert (own.family, own.layout) == (family, "diffusers")
