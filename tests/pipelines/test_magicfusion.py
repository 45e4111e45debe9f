"""MagicFusion in unmodified diffusers pipelines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from diffusemble import EnsembleDenoiser, build_aggregator
from diffusemble.experts.expert import Expert
from diffusemble.fusion import most_salient, saliency
from pipelines.test_controlnets import CONTROLLED
from pipelines.test_drawing import PIPELINES, plain
from stock import small_pipeline, small_sdxl
from tiny import as_expert
from tiny_ensembles import ATOL, NEGATIVE, PROMPT, SMALL, draw

GUIDED = ["SD", "SD, batch", "inpaint, 9 channels", "img2img", "SDXL refiner"]


def copies(whole: Any, n: int = 3) -> EnsembleDenoiser:
    expert = as_expert(whole)
    return EnsembleDenoiser(
        [Expert(f"copy {i}", expert.denoiser, expert.components, expert.pipeline_class) for i in range(n)],
        "magicfusion",
    )


def different(whole: Sequence[Any], **options: Any) -> EnsembleDenoiser:
    experts = [as_expert(one, f"expert {index}") for index, one in enumerate(whole)]
    denoisers = [expert.denoiser for expert in experts]
    return EnsembleDenoiser(experts, build_aggregator("magicfusion", denoisers, **options))


@pytest.mark.parametrize("name", GUIDED)
def test_copies_of_one_expert_draw_bit_for_bit_what_it_draws(name: str) -> None:
    build, cls, options = PIPELINES[name]
    whole = build()
    expected = draw(plain(whole, cls), **options)
    np.testing.assert_array_equal(draw(copies(whole).pipeline(cls), **options), expected)


@pytest.mark.parametrize("build", [small_pipeline, small_sdxl])
def test_one_expert_draws_as_it_draws_alone(build: Callable[[], Any]) -> None:
    whole = build()
    np.testing.assert_array_equal(draw(copies(whole, 1).pipeline(), **SMALL), draw(whole, **SMALL))


@pytest.mark.parametrize("name", ["one", "guess mode", "two", "SDXL"])
def test_a_controlnet_steers_copies_as_it_steers_one(name: str) -> None:
    build, cls, make, options = CONTROLLED[name]
    whole = build()
    net = make(whole.unet)
    expected = draw(copies(whole, 1).pipeline(cls, controlnet=net), **options)
    np.testing.assert_array_equal(draw(copies(whole).pipeline(cls, controlnet=net), **options), expected)


def test_the_picture_is_that_of_a_loop_over_guided_noises() -> None:
    whole = [small_pipeline(seed) for seed in range(3)]
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    drawn = draw(
        different(whole, guidance=4.0, above=300, otherwise=1).pipeline(),
        latents=start.clone(),
        output_type="latent",
        num_inference_steps=4,
    )
    scheduler = whole[0].scheduler
    scheduler.set_timesteps(4)
    latents, chosen = start * scheduler.init_noise_sigma, set()
    for time in scheduler.timesteps:
        halves = [_halves(one, latents, time) for one in whole]
        guided = [u + 4.0 * (c - u) for c, u in halves]
        maps = most_salient(torch.stack([saliency(c, u, 4.0) for c, u in halves], dim=1), [1.0, 1.0, 1.0])
        chosen |= set(maps.argmax(dim=1).unique().tolist())
        noise = sum(maps[:, [i]] * one for i, one in enumerate(guided)) if time > 300 else guided[1]
        latents = scheduler.step(noise, time, latents).prev_sample
    assert chosen == {0, 1, 2}
    torch.testing.assert_close(torch.as_tensor(drawn), latents, rtol=0, atol=1e-4)


@torch.no_grad()
def _halves(pipeline: Any, latents: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Noise with and without the prompt."""
    texts = pipeline.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)
    return tuple(pipeline.unet(latents, time, text).sample for text in texts)


@pytest.mark.parametrize("build", [small_pipeline, small_sdxl])
def test_a_picture_does_not_depend_on_its_batch(build: Callable[[int], Any]) -> None:
    pipeline = different([build(seed) for seed in range(3)]).pipeline()
    prompts, negatives = [PROMPT, "an owl"], ["", NEGATIVE]

    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = draw(
        pipeline,
        prompt=prompts,
        negative_prompt=negatives,
        num_images_per_prompt=2,
        generator=generators(0, 1, 2, 3),
        **SMALL,
    )
    assert together.shape == (4, 16, 16, 3)
    for number in range(4):
        own = {"prompt": prompts[number // 2], "negative_prompt": negatives[number // 2]}
        alone = draw(pipeline, **own, generator=generators(number), **SMALL)
        np.testing.assert_allclose(alone[0], together[number], atol=ATOL)


def test_without_guidance_nothing_is_drawn() -> None:
    pipeline = different([small_pipeline(seed) for seed in range(2)]).pipeline()
    for prompts in (PROMPT, [PROMPT, "an owl"]):
        with pytest.raises(ValueError, match=r"not two equal halves. Draw with a guidance scale above 1"):
            draw(pipeline, prompt=prompts, negative_prompt=None, guidance_scale=1.0, **SMALL)


def test_guidance_that_is_switched_off_on_the_way_is_noticed() -> None:
    pipeline = different([small_pipeline(seed) for seed in range(2)]).pipeline()

    def switch_off(pipe: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 0.0
        return {**given, "prompt_embeds": given["prompt_embeds"].chunk(2)[1]}

    inputs = ["latents", "prompt_embeds"]
    with pytest.raises(ValueError, match="got 1 latents that are not two equal halves"):
        draw(pipeline, callback_on_step_end=switch_off, callback_on_step_end_tensor_inputs=inputs, **SMALL)
