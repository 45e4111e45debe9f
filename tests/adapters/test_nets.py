"""ControlNets that read several kinds of pictures, and T2I-adapters in a part of the steps."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxControlNetModel, FluxControlNetPipeline, StableDiffusionXLControlNetUnionPipeline
from PIL import Image

from diffusemble.adapters.install import adapted_pipeline
from diffusemble.config.generate import GenerateConfig
from diffusemble.drawing import draw
from diffusemble.memory.working import measure_control
from diffusemble.samplers import build_scheduler
from pipelines.test_controlnets import t2i, union
from stock import small_pipeline, small_sdxl
from tiny import randomised, tiny_refiner, tiny_sdxl_pipeline
from tiny_dit import flux_controlnet, tiny_flux_pipeline
from tiny_ensembles import controlnet, different

SIDE = 16
pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),  # diffusers' own
    pytest.mark.filterwarnings("ignore:The decode_latents method is deprecated:FutureWarning"),
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with two pictures."""
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"hint{number}.png")
    return tmp_path


def hint(home: Path, number: int = 0) -> Image.Image:
    return Image.open(home / f"hint{number}.png").convert("RGB")


def given(home: Path, model: str, number: int = 0, **more: Any) -> dict[str, Any]:
    return {"model": str(home / model), "image": str(home / f"hint{number}.png"), **more}


def config_of(**settings: Any) -> GenerateConfig:
    fixed = {"prompts": ["a fox"], "seeds": [5], "steps": 2, "guidance": 4.0, "height": SIDE, "width": SIDE}
    return GenerateConfig(**{**fixed, **settings})


def by_hand(pipeline: Any, **call: Any) -> np.ndarray:
    pipeline.scheduler = build_scheduler("ddim", pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": SIDE, "width": SIDE, "num_inference_steps": 2, "guidance_scale": 4.0}
    generator = [torch.Generator("cpu").manual_seed(5)]
    return numbers(pipeline(["a fox"], **size, generator=generator, **call).images[0])


def numbers(image: Any) -> np.ndarray:
    return np.asarray(image).astype(int)


def ours(ensemble: Any, **settings: Any) -> np.ndarray:
    return numbers(draw(ensemble, config_of(**settings))[0].image)


def flux_union(model: Any) -> FluxControlNetModel:
    """Of three kinds of pictures."""
    config = {key: value for key, value in flux_controlnet(model).config.items() if not key.startswith("_")}
    return randomised(FluxControlNetModel(**{**config, "num_mode": 3}), 24)


def test_unions_of_sdxl_act_as_given_by_hand(home: Path) -> None:
    ensemble = different([small_sdxl(0), small_sdxl(1)])
    net = union(ensemble.denoisers[0])
    net.save_pretrained(home / "union")
    pipeline = ensemble.pipeline(StableDiffusionXLControlNetUnionPipeline, controlnet=[net, net])
    pictures = {"control_image": [hint(home), hint(home, 1)], "control_mode": [3, 1]}
    shares = {"control_guidance_start": [0.0, 0.5], "control_guidance_end": [1.0, 1.0]}
    expected = by_hand(pipeline, **pictures, **shares, controlnet_conditioning_scale=[0.6, 1.0])
    first, second = given(home, "union", mode=3, weight=0.6), given(home, "union", 1, mode=1, start=0.5)
    assert np.abs(ours(ensemble, controlnets=[first, second]) - expected).max() <= 1


def test_unions_of_flux_act_as_given_by_hand(home: Path) -> None:
    ensemble = different([tiny_flux_pipeline(0), tiny_flux_pipeline(1)])
    net = flux_union(ensemble.denoisers[0])
    net.save_pretrained(home / "union")
    flux_controlnet(ensemble.denoisers[0]).save_pretrained(home / "plain")
    length = {"max_sequence_length": ensemble.experts[0].components["tokenizer_2"].model_max_length}
    pipeline = ensemble.pipeline(FluxControlNetPipeline, controlnet=[net, flux_controlnet(ensemble.denoisers[0])])
    pictures = {"control_image": [hint(home), hint(home, 1)], "control_mode": [2, None]}
    expected = by_hand(pipeline, **pictures, controlnet_conditioning_scale=[2.0, 1.0], **length)
    first, second = given(home, "union", mode=2, weight=2.0), given(home, "plain", 1)
    np.testing.assert_array_equal(ours(ensemble, controlnets=[first, second]), expected)


def test_modes_that_cannot_be_are_named(home: Path) -> None:
    ensemble = different([small_sdxl(0)])
    union(ensemble.denoisers[0]).save_pretrained(home / "union")
    controlnet(ensemble.denoisers[0]).save_pretrained(home / "plain")
    for nets, message in (
        (given(home, "plain", mode=1), r"controlnets\.mode: .*plain reads pictures of one kind only, so mode 1 would"),
        (given(home, "union"), r"controlnets\.mode: .*union reads pictures of 6 kinds, .* 0 to 5; none was given"),
        (given(home, "union", mode=6), r"of 6 kinds, and 'mode' says which: 0 to 5; got 6"),
        (
            [given(home, "union", mode=1), given(home, "plain")],
            "ControlNetModel and ControlNetUnionModel, and no",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            adapted_pipeline(ensemble, config_of(controlnets=nets))


def test_whose_text_a_controlnet_reads_is_said(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = small_pipeline(0)
    controlnet(whole.unet).save_pretrained(home / "edges")
    config = config_of(controlnets=given(home, "edges"))
    with caplog.at_level(logging.WARNING, "diffusemble"):
        adapted_pipeline(different([whole, small_pipeline(1, text_encoder=whole.text_encoder)]), config)
        assert not caplog.messages
        adapted_pipeline(different([whole, small_pipeline(1)]), config)
    (message,) = caplog.messages
    assert message.startswith("ControlNets read the prompt with the text encoders of the first expert alone (expert 0)")


def test_t2i_adapters_act_in_shares_of_the_steps_of_their_own(home: Path) -> None:
    ensemble = different([small_pipeline(0)])
    for seed in (1, 2):
        t2i(seed).save_pretrained(home / f"sketch{seed}")
    calls: list[list[torch.Tensor] | None] = []
    first, second = given(home, "sketch1", weight=0.8, end=0.5), given(home, "sketch2", 1, weight=0.3, start=0.25)

    def look(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        calls.append(kwargs["down_intrablock_additional_residuals"])

    def maps(*adapters: dict[str, Any], **settings: Any) -> list[Any]:
        calls.clear()
        draw(ensemble, config_of(t2i_adapters=adapters, steps=4, **settings))
        return list(calls)

    hook = ensemble.register_forward_hook(look, with_kwargs=True)
    whole = [{key: value for key, value in one.items() if key not in ("start", "end")} for one in (first, second)]
    (one, *_), (other, *_), (both, *_) = maps(whole[0]), maps(whole[1]), maps(*whole)
    expected = [one, both, other, other]
    for settings in ({}, {"prompts": ["a fox", "an owl"], "guidance_interval": [0.0, 0.5]}):
        for step, (mine, theirs) in enumerate(zip(maps(first, second, **settings), expected, strict=True)):
            for left, right in zip(mine, theirs, strict=True):
                assert torch.allclose(left[:1], right[:1], atol=1e-6), step
    assert [step is None for step in maps(first)] == [False, False, True, True]
    hook.remove()


def test_t2i_adapters_tell_how_far_the_drawing_is(home: Path) -> None:
    t2i(1).save_pretrained(home / "sketch")
    told: list[float] = []
    draw(different([small_pipeline(0)]), config_of(t2i_adapters=given(home, "sketch")), tell=told.append)
    assert told == [0.5, 1.0]


def test_t2i_adapters_of_another_family_are_named(home: Path) -> None:
    t2i(1, xl=True).save_pretrained(home / "xl")
    t2i(1).save_pretrained(home / "sketch")
    for whole, name, message in (
        (small_pipeline(0), "xl", r"of \[8, 16\] channels from 1/4 .* are \[8, 16\] from 1/2 on"),
        (tiny_sdxl_pipeline(0), "sketch", r"of \[8, 16\] channels from 1/2 .* are \[16, 16, 32\] from 1/4 on"),
    ):
        with pytest.raises(ValueError, match=rf"t2i_adapters\.model: .*{name} is for features {message}"):
            adapted_pipeline(different([whole]), config_of(t2i_adapters=given(home, name)))


def test_t2i_adapters_steer_what_a_refiner_goes_on_from(home: Path) -> None:
    t2i(1).save_pretrained(home / "sketch")
    ensemble, refiner = different([small_sdxl(0)]), different([tiny_refiner(0)])
    drawn, told = [], []
    for window in ({"end": 0.4}, {"start": 0.3}):
        stages = {"steps": 3, "refiner": {"experts": "refiner", "start": 0.6}}
        config = config_of(t2i_adapters=given(home, "sketch", **window), **stages)
        drawn.append(numbers(draw(ensemble, config, tell=told.append, refiner=refiner)[0].image))
    assert told == pytest.approx([1 / 3, 2 / 3, 1.0] * 2)
    assert np.abs(drawn[0] - drawn[1]).max() > 0


@pytest.mark.parametrize("make", [union, flux_union])
def test_what_unions_need_is_reckoned(make: Any) -> None:
    model = small_sdxl(0).unet if make is union else tiny_flux_pipeline(0).transformer
    net = make(model)
    with torch.device("meta"):
        peak, handed_on = measure_control(net, (8, 8), 2)
    assert 0 < handed_on < peak
