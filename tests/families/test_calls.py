"""What an expert is told in the pipeline of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline
from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img import (
    LatentConsistencyModelPipeline,
)

from diffusemble import OutputEnsembleDenoiser
from diffusemble.experts.expert import Expert
from stock import small_pipeline, small_sdxl, small_unet
from tests.families.parts import ATOL, draw, expert, stable, tiny_pixart_pipeline, wider
from tiny import as_expert, tiny_refiner, tiny_scheduler
from tiny_dit import tiny_chroma_pipeline, tiny_flow_scheduler, tiny_flux_pipeline
from tiny_z_image import tiny_z_image_pipeline


def told(experts: list[Expert], **options: Any) -> Mapping[str, Any]:
    """The last arguments of the second expert's denoiser when the ensemble draws."""
    seen: list[Mapping[str, Any]] = []
    handle = experts[1].denoiser.register_forward_pre_hook(lambda _, args, given: seen.append(given), with_kwargs=True)
    draw(OutputEnsembleDenoiser(experts).eval().pipeline(), **options)
    handle.remove()
    return seen[-1]


def test_sdxl_is_told_the_size_of_the_picture() -> None:
    given = told([stable(), expert("SDXL")], num_images_per_prompt=2)
    assert given["added_cond_kwargs"]["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 4
    assert given["added_cond_kwargs"]["text_embeds"].shape == (4, 32)


def test_sdxl_is_told_what_sdxls_pipeline_is_told() -> None:
    given = told([expert("SDXL"), as_expert(small_sdxl(3), "another")], original_size=(64, 48))
    assert given["added_cond_kwargs"]["time_ids"].tolist() == [[64, 48, 0, 0, 16, 16]] * 2


def test_refiners_are_told_a_score() -> None:
    """The pipeline's in a refiner's, diffusers' default in another; a base model beside a refiner is told sizes."""
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    redrawn = {"image": picture, "strength": 0.5, "aesthetic_score": 7.0, "height": None, "width": None}
    first, second, base = as_expert(tiny_refiner(0), "one"), as_expert(tiny_refiner(1), "two"), expert("SDXL")
    scores = [[16, 16, 0, 0, 2.5], [16, 16, 0, 0, 7]]  # the first for the negative prompt
    for experts, options, expected in (
        ([first, second], redrawn, scores),
        ([first, base], redrawn, [[16, 16, 0, 0, 16, 16]] * 2),
        ([base, first], {}, [[16, 16, 0, 0, 6]] * 2),
    ):
        assert told(experts, **options)["added_cond_kwargs"]["time_ids"].tolist() == expected


def test_large_pixarts_are_told_the_size_of_the_picture() -> None:
    pixart = as_expert(tiny_pixart_pipeline(sample_size=128, interpolation_scale=2), "pixart")
    assert pixart.denoiser.use_additional_conditions
    given = told([stable(), pixart], height=16, width=32)["added_cond_kwargs"]
    assert given["resolution"].tolist() == [[16, 32]] * 2
    assert given["aspect_ratio"].tolist() == [[0.5]] * 2


def test_a_consistency_model_is_told_guidance_one() -> None:
    pipeline = small_pipeline(3, unet=small_unet(3, time_cond_proj_dim=8))
    given = told([stable(), as_expert(pipeline, "lcm")])
    one = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, torch.zeros(2), embedding_dim=8)
    assert torch.equal(given["timestep_cond"], one)


@pytest.mark.parametrize(
    ("first", "scale"), [("FLUX", 2.5), ("FLUX without guidance", 2.5), ("Chroma", 1.0), ("Z-Image", 1.0)]
)
def test_a_guided_flux_is_told_the_pipelines_scale_or_one(first: str, scale: float) -> None:
    other = as_expert(tiny_flux_pipeline(1), "other")
    given = told([expert(first), other], guidance_scale=2.5, negative_prompt=None)
    assert given["guidance"].tolist() == [scale] * len(given["hidden_states"])


@pytest.mark.parametrize("first", ["FLUX", "Chroma"])
def test_chroma_is_told_which_of_its_tokens_are_text(first: str) -> None:
    """Those of the prompt, one that fills it up, and all 16 of the picture, in whosever pipeline."""
    other = as_expert(tiny_chroma_pipeline(1), "other")
    (mask,) = told([expert(first), other], prompt="a fox", guidance_scale=1.0, negative_prompt=None)["attention_mask"]
    read = len(other.components["tokenizer"]("a fox").input_ids)
    assert torch.equal(mask, torch.tensor([1.0] * (read + 1) + [0.0] * (512 - read - 1) + [1.0] * 16))


@pytest.mark.parametrize("other", ["Chroma", "Z-Image"])
def test_a_flux_that_guides_itself_is_refused_beside_who_does_not(other: str) -> None:
    with pytest.raises(
        ValueError, match=rf"FLUX is told guidance 3.5 .*'{other.lower()}' is a {other}.*guidance_scale=1, true_cfg"
    ):
        told([expert("FLUX"), expert(other)], guidance_scale=3.5, negative_prompt=None)


@pytest.mark.parametrize("first", ["FLUX", "Z-Image"])
def test_z_image_is_told_captions_as_long_as_they_are(first: str) -> None:
    other = as_expert(tiny_z_image_pipeline(1), "other")
    prompts = ["a fox", "a much longer prompt"]
    given = told([expert(first), other], prompt=prompts, guidance_scale=1.0, negative_prompt=None)
    alone, _ = tiny_z_image_pipeline(1).encode_prompt(list(prompts), do_classifier_free_guidance=False)
    half = given["cap_feats"][:2]
    assert [len(one) for one in half] == [len(one) for one in alone]
    assert all(torch.equal(one, expected) for one, expected in zip(half, alone, strict=True))
    assert float(given["t"][0]) == pytest.approx(0.5, abs=0.4)


def test_flux_reads_one_prompt_with_all_its_encoders() -> None:
    experts = [as_expert(tiny_flux_pipeline(seed), f"dev {seed}") for seed in (0, 1)]
    with pytest.raises(ValueError, match=r"pooled text is of another prompt.*Leave prompt_2 out"):
        told(experts, prompt_2="an owl", negative_prompt=None)


def test_flux_that_follows_a_picture_is_refused() -> None:
    pipeline = OutputEnsembleDenoiser([as_expert(tiny_flux_pipeline(), "dev")]).eval().pipeline(FluxKontextPipeline)
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    call = {"image": picture, "_auto_resize": False, "max_area": 256, "negative_prompt": None}
    with pytest.raises(ValueError, match=r"one grid, here of 4 x 4, but the pipeline gives 32.*FLUX Kontext"):
        draw(pipeline, **call)


def test_a_length_for_one_tokenizer_is_refused() -> None:
    pipeline = OutputEnsembleDenoiser([as_expert(tiny_flux_pipeline(), "dev")]).eval().pipeline()
    with pytest.raises(ValueError, match=r"max_sequence_length=8 is .* of its own pipeline \(512 tokens"):
        draw(pipeline, max_sequence_length=8, negative_prompt=None)


def test_each_is_told_the_time_of_its_own_schedule() -> None:
    twice = tiny_scheduler(num_train_timesteps=500, beta_start=0.0017, beta_end=0.024)
    other = wider()
    given = told([stable(), replace(other, components={**other.components, "scheduler": twice})])
    assert given["timestep"].dtype == torch.float32
    assert float(given["timestep"][0]) == pytest.approx(0.5, abs=0.6)  # the last step is at timestep 1 of 1000


def test_each_flow_is_told_the_time_of_its_own_schedule() -> None:
    """The last of two even steps, at σ = 1/2, is 250 of 500 timesteps, which FLUX's pipelines tell as 250 / 1000."""
    first, second = (
        as_expert(
            tiny_flux_pipeline(seed, scheduler=tiny_flow_scheduler(shift=1.0, num_train_timesteps=count)), str(count)
        )
        for seed, count in enumerate((1000, 500))
    )
    assert told([first, second], negative_prompt=None)["timestep"].tolist() == [0.25]


def test_a_schedule_that_starts_without_a_picture_is_drawn_with_experts_that_cannot() -> None:
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    first = as_expert(small_pipeline(scheduler=tiny_scheduler(prediction_type="v_prediction", **zero)), "zero")
    pipeline = OutputEnsembleDenoiser([first, stable("noise", 4), wider()]).eval().pipeline()
    assert int(pipeline.scheduler.config.num_train_timesteps) == 1000
    assert np.isfinite(draw(pipeline)).all()


@pytest.mark.parametrize(
    ("name", "cls"), [("sd", StableDiffusionImg2ImgPipeline), ("xl", StableDiffusionXLImg2ImgPipeline)]
)
def test_pictures_are_redrawn(name: str, cls: type) -> None:
    """Image to image, through the unmodified pipeline; copies in other company draw the same."""
    one = stable() if name == "sd" else expert("SDXL")
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    options = {"image": picture, "strength": 0.7, "num_inference_steps": 4}
    together = OutputEnsembleDenoiser([one, replace(one, name="copy")]).eval().pipeline(cls)
    stock = cls.from_pipe(OutputEnsembleDenoiser([one]).families[0].pipeline)
    found, expected = (redraw(pipeline, options) for pipeline in (together, stock))
    np.testing.assert_allclose(found, expected, atol=ATOL)
    mixed = OutputEnsembleDenoiser([one, wider()]).eval().pipeline(cls)
    assert np.abs(redraw(mixed, options) - found).max() > 1e-3


def redraw(pipeline: Any, options: Mapping[str, Any]) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(11)
    return pipeline("a red fox", guidance_scale=4.0, generator=generator, output_type="np", **options).images


def test_a_lora_is_refused() -> None:
    with pytest.raises(ValueError, match=r"A LoRA is made for one architecture.*when you load them"):
        OutputEnsembleDenoiser([stable(), wider()]).load_lora_adapter({})
