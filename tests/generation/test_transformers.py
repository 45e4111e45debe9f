"""From folders of FLUX and SD3 models to pictures: generate, describe, save and load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from diffusemble import EnsembleDenoiser, build_aggregator, load_experts
from diffusemble.config.generate import GenerateConfig
from diffusemble.description import describe
from diffusemble.drawing import choose_maps, draw
from diffusemble.generation import generate
from diffusemble.pictures.sheet import MARGIN, Column, contact_sheet
from diffusemble.pictures.sheet import SMALL as SMALL_TEXT
from diffusemble.pictures.text import PAPER, line_height
from diffusemble.samplers import build_scheduler, title_for, use_sampler
from laws import disturb
from tiny import as_expert
from tiny_dit import tiny_chroma_pipeline, tiny_flow_scheduler, tiny_flux, tiny_flux_pipeline, tiny_sd3_pipeline
from tiny_qwen import tiny_qwen_pipeline
from tiny_z_image import tiny_z_image_pipeline

BUILDERS = {"flux": tiny_flux_pipeline, "sd3": tiny_sd3_pipeline}
SMALL = {"prompts": ("a red fox",), "seeds": (3,), "steps": 2, "height": 16, "width": 24, "guidance": 3.0}


@pytest.fixture(params=BUILDERS)
def build(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return BUILDERS[request.param]


def folders(build: Callable[..., Any], where: Path) -> list[str]:
    for seed in (1, 2):
        build(seed).save_pretrained(where / f"expert{seed}")
    return [str(where / f"expert{seed}") for seed in (1, 2)]


def pixels(image: Any) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_a_trained_ensemble_is_saved_loaded_and_draws_the_same(build: Callable[..., Any], tmp_path: Path) -> None:
    experts = load_experts(folders(build, tmp_path))
    ensemble = EnsembleDenoiser(experts)
    aggregator = build_aggregator("sabw", ensemble.denoisers, preset="tiny")
    disturb(aggregator)
    ensemble = EnsembleDenoiser(experts, aggregator).eval()
    config = GenerateConfig(ensemble=str(tmp_path / "ensemble"), attention=True, device="cpu", **SMALL)
    (expected,) = draw(ensemble, config)
    ensemble.save_pretrained(tmp_path / "ensemble")

    found = generate(config)
    np.testing.assert_array_equal(pixels(found.pictures[0].image), pixels(expected.image))
    assert found.attention().width > 100
    (mean,) = draw(EnsembleDenoiser(experts), config)
    assert np.abs(pixels(mean.image) - pixels(expected.image)).max() > 0


def test_sd3_without_t5_is_a_folder_like_any_other(tmp_path: Path) -> None:
    tiny_sd3_pipeline(1, text_encoder_3=None, tokenizer_3=None).save_pretrained(tmp_path / "small")
    (expert,) = load_experts(tmp_path / "small")
    assert "text_encoder_3" not in expert.components
    (found,) = draw(EnsembleDenoiser([expert]), GenerateConfig(device="cpu", **SMALL))
    assert pixels(found.image).std() > 5


def test_pictures_show_every_expert_beside_the_ensemble(build: Callable[..., Any], tmp_path: Path) -> None:
    config = GenerateConfig(experts=folders(build, tmp_path), compare=True, device="cpu", **SMALL)
    found = generate(config)
    assert found.experts == ("expert1", "expert2")
    assert found.sheet is not None
    columns = [Column("", PAPER, [picture.image for picture in found.pictures])] * 3
    expected = contact_sheet([""], columns, "2 steps of flow-matching Euler, guidance 3, seed 3")
    assert expected.size == found.sheet.size
    footer = (0, expected.height - MARGIN - line_height(SMALL_TEXT), *expected.size)
    assert found.sheet.crop(footer).tobytes() == expected.crop(footer).tobytes()


def test_the_cost_of_a_step_is_counted(build: Callable[..., Any]) -> None:
    ensemble = EnsembleDenoiser([as_expert(build(seed), f"expert {seed}") for seed in (1, 2)])
    found = describe(ensemble, (8, 12))
    assert {point.grid for point in found.points} <= {(4, 6), (8, 12)}
    assert found.ensemble_flops == 2 * found.expert_flops > 0


def test_flow_experts_are_drawn_along_their_flow() -> None:
    trained_with = tiny_flow_scheduler(shift=2.5).config
    for name in ("ddim", "euler"):
        scheduler = build_scheduler(name, trained_with)
        assert type(scheduler) is FlowMatchEulerDiscreteScheduler
        assert scheduler.config.shift == 2.5
        assert title_for(name, trained_with) == "flow-matching Euler"
    solver = build_scheduler("dpm++", trained_with)
    assert type(solver) is DPMSolverMultistepScheduler
    assert (solver.config.use_flow_sigmas, solver.config.flow_shift) == (True, 2.5)
    assert type(build_scheduler("dpm++", solver.config)) is DPMSolverMultistepScheduler
    with pytest.raises(ValueError, match=r"'pndm' is for experts that predict noise, .* Choose one of: ddim"):
        build_scheduler("pndm", trained_with)


@pytest.mark.parametrize("name", ["euler", "dpm++"])
def test_every_flow_sampler_draws(build: Callable[..., Any], name: str) -> None:
    config = GenerateConfig(scheduler=name, device="cpu", **SMALL)
    (found,) = draw(EnsembleDenoiser([as_expert(build())]), config)
    assert pixels(found.image).std() > 5


def test_guidance_is_told_as_each_flux_takes_it() -> None:
    built_in = EnsembleDenoiser([as_expert(tiny_flux_pipeline())])
    plain = EnsembleDenoiser([as_expert(tiny_flux_pipeline(transformer=tiny_flux(guidance_embeds=False)))])

    def picture(ensemble: EnsembleDenoiser, **change: Any) -> np.ndarray:
        (found,) = draw(ensemble, GenerateConfig(**{"device": "cpu", **SMALL, **change}))
        return pixels(found.image)

    for ensemble in (built_in, plain):
        assert np.abs(picture(ensemble) - picture(ensemble, guidance=9.0)).max() > 0
    assert np.abs(picture(plain) - picture(plain, negative="an owl")).max() > 0
    with pytest.raises(ValueError, match=r"negative: guidance is built into these experts .* Leave 'negative' out, or"):
        picture(built_in, negative="an owl")
    whole = tiny_flux_pipeline()
    whole.set_progress_bar_config(disable=True)
    stock = whole(
        "a red fox",
        height=16,
        width=24,
        num_inference_steps=2,
        guidance_scale=3.0,
        max_sequence_length=16,
        generator=torch.Generator("cpu").manual_seed(3),
    ).images[0]
    np.testing.assert_array_equal(picture(built_in), pixels(stock))


def test_maps_are_those_of_the_prompt_where_guidance_calls_twice() -> None:
    experts = [
        as_expert(tiny_flux_pipeline(seed, transformer=tiny_flux(seed, guidance_embeds=False)), f"{seed}")
        for seed in (1, 2)
    ]
    aggregator = build_aggregator("sabw", [expert.denoiser for expert in experts], preset="tiny")
    disturb(aggregator)
    ensemble = EnsembleDenoiser(experts, aggregator).eval()

    def maps(**change: Any) -> Any:
        config = GenerateConfig(device="cpu", attention=True, **{**SMALL, **change})
        return draw(ensemble, config, choose_maps(ensemble, config))[0].maps

    guided, alone = maps(guidance=3.0, steps=1), maps(guidance=1.0, steps=1)
    assert all(torch.equal(a.maps[0], b.maps[0]) for a, b in zip(guided, alone, strict=True))


@pytest.mark.parametrize("pipeline", [tiny_chroma_pipeline, tiny_qwen_pipeline, tiny_z_image_pipeline])
def test_a_pipeline_that_chooses_the_steps_refuses_a_sampler_that_does(pipeline: Callable[[], Any]) -> None:
    own = pipeline()
    for name in ("dpm++", "pndm"):
        with pytest.raises(ValueError, match=r"does not take the steps that .*Pipeline gives.*: ddim, euler, lcm\.$"):
            use_sampler(own, name)
    use_sampler(own, "lcm")
    assert type(own.scheduler).__name__ == "FlowMatchLCMScheduler"
