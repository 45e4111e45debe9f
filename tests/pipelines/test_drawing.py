"""The ensemble in unmodified diffusers pipelines: text to image, image to image, inpainting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)

from diffusemble import EnsembleDenoiser
from stock import small_pipeline, small_sdxl, small_unet
from tiny import as_expert, tiny_refiner, tiny_unet
from tiny_ensembles import ATOL, NEGATIVE, PROMPT, SMALL, copies, different, draw, mask, picture, unlike

IMG2IMG = {"image": picture(), "strength": 0.5, "num_inference_steps": 4}
INPAINT = {"image": picture(), "mask_image": mask(), "strength": 1.0, **SMALL}

PIPELINES: dict[str, tuple[Callable[[], Any], type | None, dict[str, Any]]] = {
    "SD": (small_pipeline, None, SMALL),
    "SD without guidance": (small_pipeline, None, {**SMALL, "guidance_scale": 1.0}),
    "SD, batch": (
        small_pipeline,
        None,
        {**SMALL, "prompt": [PROMPT, "an owl"], "negative_prompt": ["", NEGATIVE], "num_images_per_prompt": 2},
    ),
    "SD, guidance rescale": (small_pipeline, None, {**SMALL, "guidance_rescale": 0.7}),
    "img2img": (small_pipeline, StableDiffusionImg2ImgPipeline, IMG2IMG),
    "inpaint, 4 channels": (small_pipeline, StableDiffusionInpaintPipeline, INPAINT),
    "inpaint, 9 channels": (
        lambda: small_pipeline(unet=small_unet(in_channels=9)),
        StableDiffusionInpaintPipeline,
        INPAINT,
    ),
    "SDXL": (small_sdxl, None, SMALL),
    "SDXL without negative prompt": (small_sdxl, None, {**SMALL, "negative_prompt": None}),
    "SDXL, clip_skip and batch": (
        small_sdxl,
        None,
        {
            **SMALL,
            "clip_skip": 1,
            "prompt": [PROMPT, "an owl"],
            "prompt_2": ["at night", "by day"],
            "negative_prompt": [NEGATIVE, "dull"],
            "num_images_per_prompt": 2,
        },
    ),
    "SDXL img2img": (small_sdxl, StableDiffusionXLImg2ImgPipeline, IMG2IMG),
    "SDXL refiner": (tiny_refiner, None, IMG2IMG),
    "SDXL inpaint": (small_sdxl, StableDiffusionXLInpaintPipeline, INPAINT),
}


def plain(whole: Any, cls: type | None) -> Any:
    return whole if cls is None else cls.from_pipe(whole)


@pytest.mark.parametrize("name", PIPELINES)
def test_copies_of_one_expert_draw_what_it_draws(name: str) -> None:
    build, cls, options = PIPELINES[name]
    whole = build()
    together, alone = copies(as_expert(whole)), copies(as_expert(whole), 1)
    expected = draw(plain(whole, cls), **options)
    assert expected.std() > 0.05
    np.testing.assert_array_equal(draw(alone.pipeline(cls), **options), expected)
    np.testing.assert_allclose(draw(together.pipeline(cls), **options), expected, atol=ATOL)


@pytest.mark.parametrize("build", [small_pipeline, small_sdxl])
def test_different_experts_draw_something_of_their_own(build: Callable[[int], Any]) -> None:
    whole = [build(seed) for seed in range(2)]
    together = draw(different(whole).pipeline(), **SMALL)
    assert np.isfinite(together).all()
    assert all(unlike(together, draw(one, **SMALL)) for one in whole)


def test_a_callback_sees_every_step() -> None:
    steps = []

    def note(pipeline: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        steps.append((step, given["latents"].shape))
        return given

    draw(copies(as_expert(small_pipeline())).pipeline(), callback_on_step_end=note, **SMALL)
    assert steps == [(step, (1, 4, 8, 8)) for step in range(2)]


def test_the_pipeline_converts_and_reads_the_ensemble_as_one_denoiser() -> None:
    pipeline = copies(as_expert(small_pipeline())).pipeline()
    assert isinstance(pipeline, StableDiffusionPipeline)
    assert pipeline.unet.config.in_channels == 4
    assert draw(pipeline).shape == (1, 16, 16, 3)  # the size is read from the configuration
    pipeline.to(torch.bfloat16)
    assert pipeline.dtype == pipeline.unet.dtype == pipeline.text_encoder.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in pipeline.unet.parameters()} == {torch.bfloat16}
    assert np.isfinite(draw(pipeline)).all()
    pipeline.to("meta")
    assert pipeline.unet.device == pipeline.text_encoder.device == pipeline.device == torch.device("meta")


def test_another_scheduler_can_be_installed() -> None:
    whole = small_pipeline()
    euler = EulerDiscreteScheduler.from_config(whole.scheduler.config)
    drawn = draw(copies(as_expert(whole)).pipeline(scheduler=euler), **SMALL)
    whole.scheduler = EulerDiscreteScheduler.from_config(whole.scheduler.config)
    np.testing.assert_allclose(drawn, draw(whole, **SMALL), atol=ATOL)


def test_missing_and_unknown_parts_are_named() -> None:
    ensemble = copies(as_expert(small_pipeline()))
    with pytest.raises(ValueError, match=r"also needs 'controlnet': pass it as pipeline\(.*, controlnet=\.\.\.\)"):
        ensemble.pipeline(StableDiffusionControlNetPipeline)
    with pytest.raises(ValueError, match=r"StableDiffusionPipeline does not take the part 'contrlnet'. Its parts"):
        ensemble.pipeline(contrlnet=None)
    with pytest.raises(ValueError, match="does not take the part 'unet'"):
        ensemble.pipeline(unet=tiny_unet())
    with pytest.raises(ValueError, match="these experts are bare denoisers"):
        EnsembleDenoiser([tiny_unet()]).pipeline()
