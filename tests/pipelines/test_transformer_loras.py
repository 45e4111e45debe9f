"""LoRAs in pipelines around ensembles of FLUX, Chroma and SD3 models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxControlPipeline
from torch import nn

from diffusemble import EnsembleDenoiser
from diffusemble.experts.expert import Expert
from tiny import as_expert
from tiny_dit import tiny_chroma_pipeline, tiny_flux_pipeline, tiny_sd3_pipeline
from tiny_ensembles import different, rebuilt, wide_picture
from unet_inputs import randn


def draw(pipeline: Any, **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    settings = {"height": 16, "width": 24, "num_inference_steps": 2, "max_sequence_length": 12, "output_type": "np"}
    return pipeline("a red fox", generator=torch.Generator().manual_seed(11), **settings, **options).images


def lora(model: nn.Module) -> dict[str, torch.Tensor]:
    """A LoRA of rank 3 on queries and values, as published ones are laid out."""
    layers = {name: one for name, one in model.named_modules() if name.endswith(("attn.to_q", "attn.to_v"))}
    down = {f"transformer.{name}.lora_A.weight": randn(3, one.in_features, seed=1) for name, one in layers.items()}
    up = {f"transformer.{name}.lora_B.weight": randn(one.out_features, 3, seed=2) for name, one in layers.items()}
    return {**down, **up}


@pytest.mark.parametrize("build", [tiny_flux_pipeline, tiny_chroma_pipeline, tiny_sd3_pipeline])
def test_a_lora_reaches_every_expert(build: Callable[[], Any]) -> None:
    whole, twin = as_expert(build(), "one"), as_expert(build(), "two")
    stock = build()
    weights, plain = lora(stock.transformer), draw(stock)
    other = Expert("two", copy.deepcopy(twin.denoiser), twin.components, twin.pipeline_class)
    together = EnsembleDenoiser([whole, other]).pipeline()
    for pipeline in (stock, together):
        pipeline.load_lora_weights(dict(weights), adapter_name="ink")
        pipeline.set_adapters("ink", 0.7)
    expected = draw(stock)
    assert np.abs(expected - plain).max() > 0.01
    np.testing.assert_array_equal(draw(together), expected)  # halves add up without rounding
    for pipeline in (stock, together):
        pipeline.fuse_lora()
    np.testing.assert_array_equal(draw(together), draw(stock))
    together.unfuse_lora()
    together.unload_lora_weights()
    np.testing.assert_allclose(draw(together), plain, atol=2e-5)  # what was added to the weights was taken away


def control_lora(model: nn.Module) -> dict[str, torch.Tensor]:
    """A LoRA that widens the first layer for control latents, and replaces norms, as those of FLUX Canny and Depth."""
    first, norm = model.x_embedder, model.transformer_blocks[0].attn.norm_q.weight
    return {
        **lora(model),
        "transformer.x_embedder.lora_A.weight": randn(3, 2 * first.in_features, seed=3),
        "transformer.x_embedder.lora_B.weight": randn(first.out_features, 3, seed=4),
        "transformer.transformer_blocks.0.attn.norm_q.weight": 1 + randn(*norm.shape, seed=5),
    }


def test_a_control_lora_widens_and_replaces_layers_of_every_expert() -> None:
    stock = rebuilt(tiny_flux_pipeline(), FluxControlPipeline, {})
    together = different([tiny_flux_pipeline(), tiny_flux_pipeline()]).pipeline(FluxControlPipeline)
    control = {"control_image": wide_picture(2)}
    norms = [one.transformer_blocks[0].attn.norm_q.weight for one in together.transformer.denoisers]
    before = [norm.clone() for norm in norms]
    weights = control_lora(stock.transformer)
    for pipeline in (stock, together):
        pipeline.load_lora_weights(dict(weights))
    assert together.transformer.config.in_channels == 32
    expected = draw(stock, **control)
    np.testing.assert_array_equal(draw(together, **control), expected)
    assert np.abs(expected - draw(stock, control_image=wide_picture(3))).max() > 0.01
    assert not any(map(torch.equal, norms, before))
    with pytest.raises(ValueError, match="narrows the first layer of one transformer"):
        together.unload_lora_weights(reset_to_overwritten_params=True)
    for pipeline in (stock, together):
        pipeline.unload_lora_weights()
    np.testing.assert_array_equal(draw(together, **control), draw(stock, **control))
    assert all(map(torch.equal, norms, before))
