from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diffusemble import EnsembleDenoiser, load_experts
from diffusemble.config.generate import GenerateConfig
from diffusemble.drawing import choose_maps, draw, install, placement
from diffusemble.registry import SCHEDULERS
from diffusemble.samplers import build_scheduler
from tiny import small_pipeline, tiny_scheduler


@pytest.fixture(scope="module")
def ensemble(trained: str) -> EnsembleDenoiser:
    return EnsembleDenoiser.from_pretrained(trained).eval()


def config_of(**settings: Any) -> GenerateConfig:
    return GenerateConfig(**{"prompts": "a cat", "steps": 2, **settings})


@pytest.mark.parametrize("name", SCHEDULERS)
def test_one_expert_draws_what_its_own_pipeline_draws(folders: tuple[str, ...], name: str) -> None:
    one = EnsembleDenoiser(load_experts(folders[1:]))
    pipeline = small_pipeline(1)
    pipeline.scheduler = build_scheduler(name, one.experts[0].components["scheduler"].config)
    reference = pipeline(
        "a cat", negative_prompt="a dog", num_inference_steps=4, generator=torch.Generator().manual_seed(7)
    ).images[0]
    (picture,) = draw(one, config_of(negative="a dog", seeds=7, scheduler=name, steps=4))
    assert picture.image.tobytes() == reference.tobytes()
    assert (picture.prompt, picture.seed) == ("a cat", 7)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_keeps_the_experts_noise_schedule(name: str) -> None:
    trained_with = tiny_scheduler(prediction_type="v_prediction", beta_end=0.02).config
    scheduler = build_scheduler(name, trained_with)
    assert type(scheduler) is SCHEDULERS[name].load()
    assert scheduler.config.prediction_type == "v_prediction"
    assert (scheduler.config.beta_end, scheduler.config.beta_schedule) == (0.02, "scaled_linear")


def test_ddim_has_the_settings_of_the_paper_whatever_the_expert_says() -> None:
    other = tiny_scheduler(steps_offset=0, clip_sample=True, set_alpha_to_one=True).config
    found = build_scheduler("ddim", other).config
    assert (found.steps_offset, found.clip_sample, found.set_alpha_to_one) == (1, False, False)


def test_an_unknown_scheduler_is_named() -> None:
    with pytest.raises(ValueError, match=r"Unknown scheduler 'heun'. Choose one of: ddim, pndm"):
        build_scheduler("heun", {})


def test_a_picture_does_not_depend_on_its_batch(ensemble: EnsembleDenoiser) -> None:
    settings = {"prompts": ("a cat", "two dogs"), "seeds": (3, 4)}
    together = draw(ensemble, config_of(**settings, batch=3))
    alone = draw(ensemble, config_of(**settings, batch=1))
    assert [(one.prompt, one.seed) for one in together] == [
        ("a cat", 3),
        ("a cat", 4),
        ("two dogs", 3),
        ("two dogs", 4),
    ]
    for one, other in zip(together, alone, strict=True):
        # Another batch size may sum in another order: a grey level of rounding, no more.
        difference = np.abs(np.asarray(one.image).astype(int) - np.asarray(other.image).astype(int))
        assert difference.max() <= 1
    assert together[0].image.tobytes() != together[1].image.tobytes()
    assert together[0].image.tobytes() != together[2].image.tobytes()


def test_size_guidance_and_negative_prompt_are_used(ensemble: EnsembleDenoiser) -> None:
    (plain,) = draw(ensemble, config_of())
    (sized,) = draw(ensemble, config_of(height=24, width=32))
    assert (plain.image.size, sized.image.size) == ((16, 16), (32, 24))
    for settings in ({"guidance": 1.0}, {"negative": "a dog"}, {"steps": 3}, {"seeds": 9}, {"scheduler": "euler"}):
        (other,) = draw(ensemble, config_of(**settings))
        assert other.image.tobytes() != plain.image.tobytes(), settings


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_kept_maps_belong_to_the_prompt_the_picture_and_the_step(
    ensemble: EnsembleDenoiser, name: str, guidance: float
) -> None:
    settings = {"scheduler": name, "guidance": guidance, "steps": 3, "attention": {"points": ["up.1.layer1"]}}
    config = config_of(**settings, prompts=("a cat", "two dogs"))
    together = draw(ensemble, config, choose_maps(ensemble, config))
    for picture in together:
        (point,) = picture.maps
        assert (point.name, point.steps) == ("up.1.layer1", (1, 2, 3))
        assert all(maps.shape == (2, 8, 8) for maps in point.maps)
        # The map of the first step can be had from one call: same noise, same prompt, no guidance.
        single = config_of(**{**settings, "guidance": 1.0}, prompts=picture.prompt)
        (alone,) = draw(ensemble, single, choose_maps(ensemble, single))[0].maps
        torch.testing.assert_close(point.maps[0], alone.maps[0], rtol=0, atol=1e-4)


def test_a_spread_of_points_and_steps_by_default(ensemble: EnsembleDenoiser) -> None:
    choice = choose_maps(ensemble, config_of(attention=True, steps=50))
    assert choice is not None
    assert choice.steps == (1, 11, 21, 30, 40, 50)
    assert [*choice.points.values()][:: len(choice.points) - 1] == ["conv_in", "up.1.layer1"]
    assert all(ensemble.points[index] == name for index, name in choice.points.items())
    few = choose_maps(ensemble, config_of(attention=True, steps=2))
    assert few is not None
    assert few.steps == (1, 2)
    assert choose_maps(ensemble, config_of()) is None


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ({"points": ["mud"]}, r"aggregates at no point 'mud' \(did you mean 'mid'\?\). Its points: conv_in, .*mid"),
        ({"steps": [3]}, r"there is no step 3; the picture is drawn in 2 steps"),
    ],
)
def test_maps_that_do_not_exist_are_named(ensemble: EnsembleDenoiser, attention: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_maps(ensemble, config_of(attention=attention))


def test_progress_rises_to_one(ensemble: EnsembleDenoiser) -> None:
    shares: list[float] = []
    draw(ensemble, config_of(seeds=(0, 1, 2), batch=2, scheduler="pndm", steps=4), tell=shares.append)
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.3
    assert shares[-1] == 1.0


def test_the_pipeline_is_an_ordinary_one_around_the_ensemble(ensemble: EnsembleDenoiser) -> None:
    pipeline = install(ensemble, config_of(scheduler="dpm++"))
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    assert pipeline.unet is ensemble
    assert type(pipeline.scheduler).__name__ == "DPMSolverMultistepScheduler"


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:fast"])
def test_a_device_that_is_not_there_is_told_with_those_that_are(device: str) -> None:
    with pytest.raises(
        ValueError, match=rf"device: PyTorch finds no device '{device}' here, but cpu.*Leave `device` out"
    ):
        placement(device, "auto")
