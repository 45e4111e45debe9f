"""Diffusers' guiders on an ensemble, in diffusers' modular pipelines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    LayerSkipConfig,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks

from stock import small_sdxl
from tiny_ensembles import ATOL, NEGATIVE, PROMPT, SMALL, different, unlike

LAYERS = "mid_block.attentions.0.transformer_blocks"


def skipped(places: list[str]) -> list[LayerSkipConfig]:
    return [LayerSkipConfig(indices=[0], fqn=place + LAYERS) for place in places]


Make = Callable[[list[str]], Any]
GUIDERS: dict[str, Make] = {
    "plain": lambda places: ClassifierFreeGuidance(guidance_scale=2.0),
    "projected": lambda places: AdaptiveProjectedGuidance(guidance_scale=4.0, use_original_formulation=True),
    "zero star": lambda places: ClassifierFreeZeroStarGuidance(guidance_scale=4.0),
    "tangential": lambda places: TangentialClassifierFreeGuidance(guidance_scale=4.0),
    "perturbed": lambda places: PerturbedAttentionGuidance(
        4.0, 3.0, 0.0, 1.0, perturbed_guidance_config=skipped(places)
    ),
    "skipped layers": lambda places: SkipLayerGuidance(4.0, 3.0, 0.0, 1.0, skip_layer_config=skipped(places)),
    "worse self": lambda places: AutoGuidance(guidance_scale=4.0, auto_guidance_config=skipped(places)),
}


def draw(parts: dict[str, Any], guider: Any) -> np.ndarray:
    blocks = StableDiffusionXLAutoBlocks().init_pipeline()
    known = {name for name in ("unet", "vae", "scheduler", *parts) if name in blocks.component_names}
    blocks.update_components(guider=guider, **{name: part for name, part in parts.items() if name in known})
    blocks.set_progress_bar_config(disable=True)
    call = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": 2, **SMALL}
    return blocks(**call, generator=torch.Generator().manual_seed(11), output_type="np", output="images")


@pytest.mark.parametrize("name", GUIDERS)
def test_a_guider_guides_two_equal_experts_as_one(name: str) -> None:
    """Those that skip layers are told the layers of every expert by name."""
    make, one = GUIDERS[name], small_sdxl()
    together = different([small_sdxl(), small_sdxl()]).pipeline()
    expected = draw(one.components, make([""]))
    found = draw(together.components, make(["denoisers.0.", "denoisers.1."]))
    np.testing.assert_allclose(found, expected, atol=ATOL)
    usual = draw(one.components, ClassifierFreeGuidance(guidance_scale=4.0))
    assert unlike(expected, usual, 1e-4)
