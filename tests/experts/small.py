"""Pipelines for loading, with every kind of layer once: a quarter of the tensors of those that are drawn with."""

from __future__ import annotations

from typing import Any

from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from tiny import tiny_pipeline, tiny_unet

UNET = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
}


def small_unet(seed: int = 0, **config: Any) -> UNet2DConditionModel:
    """An SD 1.x U-Net of two levels; ``config`` overrides its entries."""
    return tiny_unet(seed, **{**UNET, **config})


def small_pipeline(seed: int = 0, **parts: Any) -> StableDiffusionPipeline:
    """``tiny_pipeline`` with a ``small_unet``."""
    return tiny_pipeline(seed, **({"unet": small_unet(seed)} | parts))
