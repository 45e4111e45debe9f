"""SDXL's base and refiner as two ensembles in diffusers' two-stage drawing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline

from stock import small_sdxl
from tiny import tiny_refiner
from tiny_ensembles import ATOL, NEGATIVE, PROMPT, SMALL, different, unlike

CALL = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": 3, "guidance_scale": 4.0}
SPLIT = 0.5


def two_stages(first: Any, second: Any, **refined: Any) -> np.ndarray:
    latents = first(
        **CALL, **SMALL, denoising_end=SPLIT, output_type="latent", generator=torch.Generator().manual_seed(3)
    ).images
    assert latents.shape == (1, 4, 8, 8)
    return second(**CALL, image=latents, denoising_start=SPLIT, output_type="np", **refined).images


def test_two_equal_bases_and_two_equal_refiners_draw_what_one_of_each_draws() -> None:
    expected = two_stages(small_sdxl(), tiny_refiner())
    bases, refiners = different([small_sdxl(), small_sdxl()]), different([tiny_refiner(), tiny_refiner()])
    np.testing.assert_allclose(two_stages(bases.pipeline(), refiners.pipeline()), expected, atol=ATOL)
    score = two_stages(bases.pipeline(), refiners.pipeline(), aesthetic_score=2.0)
    np.testing.assert_allclose(score, two_stages(small_sdxl(), tiny_refiner(), aesthetic_score=2.0), atol=ATOL)
    assert unlike(score, expected, 1e-4)


def test_ensembles_of_different_sizes_follow_each_other() -> None:
    bases = different([small_sdxl(0), small_sdxl(1)]).pipeline()
    refiners = [different([tiny_refiner(seed) for seed in seeds]).pipeline() for seeds in ((0,), (0, 1))]
    drawn = [two_stages(bases, refiner) for refiner in refiners]
    assert all(unlike(one, other, 1e-3) for i, one in enumerate(drawn) for other in drawn[:i])


def test_base_models_can_refine_too() -> None:
    expected = two_stages(small_sdxl(0), StableDiffusionXLImg2ImgPipeline.from_pipe(small_sdxl(1)))
    second = different([small_sdxl(1), small_sdxl(1)]).pipeline(StableDiffusionXLImg2ImgPipeline)
    np.testing.assert_allclose(two_stages(different([small_sdxl(0)]).pipeline(), second), expected, atol=ATOL)
