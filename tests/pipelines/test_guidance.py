"""Guidance on an ensemble: rescaled, perturbed, or between two shares of the steps only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diffusers import (
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLPAGPipeline,
)

from diffusemble import EnsembleDenoiser, build_aggregator, guidance_interval
from stock import generator, sd3, small_pipeline, small_sdxl, small_unet
from tiny import as_expert
from tiny_dit import tiny_chroma_pipeline
from tiny_ensembles import ATOL, SMALL, controlnet, different, draw, picture, stock, unlike
from tiny_flux2 import tiny_flux2_pipeline
from tiny_z_image import tiny_z_image_pipeline


def test_guidance_is_rescaled_as_for_one_expert() -> None:
    alone, together = small_sdxl(), different([small_sdxl(), small_sdxl()]).pipeline()
    expected = draw(alone, guidance_rescale=0.7, **SMALL)
    np.testing.assert_allclose(draw(together, guidance_rescale=0.7, **SMALL), expected, atol=ATOL)
    assert unlike(expected, draw(alone, **SMALL), 1e-3)


PERTURBED: dict[str, tuple[Callable[..., Any], type, dict[str, Any]]] = {
    "SD": (small_pipeline, StableDiffusionPAGPipeline, {"pag_scale": 3.0}),
    "SD, adaptive": (small_pipeline, StableDiffusionPAGPipeline, {"pag_scale": 3.0, "pag_adaptive_scale": 0.001}),
    "SD, no other guidance": (small_pipeline, StableDiffusionPAGPipeline, {"pag_scale": 3.0, "guidance_scale": 1.0}),
    "SDXL": (small_sdxl, StableDiffusionXLPAGPipeline, {"pag_scale": 3.0}),
}
LAYERS = ["mid", "up_blocks.1.attentions.0"]


@pytest.mark.parametrize("name", PERTURBED)
def test_perturbed_attention_reaches_two_equal_experts_as_one(name: str) -> None:
    build, cls, call = PERTURBED[name]
    layers = ["mid"] if name == "SDXL" else LAYERS
    one = stock(cls, build(), pag_applied_layers=layers)
    together = different([build(), build()]).pipeline(cls, pag_applied_layers=layers)
    before = together.unet.attn_processors
    expected = draw(one, **call, **SMALL)
    np.testing.assert_allclose(draw(together, **call, **SMALL), expected, atol=ATOL)
    assert unlike(expected, draw(one, **{**call, "pag_scale": 0.0}, **SMALL), 1e-3)
    assert together.unet.attn_processors == before


def test_perturbed_attention_leaves_the_aggregators_own_attention_alone() -> None:
    experts = [as_expert(small_pipeline(seed), f"expert {seed}") for seed in range(2)]
    aggregator = build_aggregator("sabw", [expert.denoiser for expert in experts], width=8, heads=2, layers=1, groups=2)
    pipeline = EnsembleDenoiser(experts, aggregator).pipeline(
        StableDiffusionPAGPipeline, pag_applied_layers=["transformer_blocks.0"]
    )
    own = [module.processor for module in aggregator.modules() if hasattr(module, "get_processor")]
    assert own
    seen: list[list[Any]] = []

    def look(pipe: Any, step: int, time: Any, state: dict[str, Any]) -> dict[str, Any]:
        seen.append([module.processor for module in aggregator.modules() if hasattr(module, "get_processor")])
        return state

    assert np.isfinite(draw(pipeline, pag_scale=3.0, callback_on_step_end=look, **SMALL)).all()
    assert seen == [own] * 2
    pipeline.set_pag_applied_layers(["nowhere"])
    with pytest.raises(ValueError, match="Cannot find PAG layer to set attention processor for: nowhere"):
        draw(pipeline, pag_scale=3.0, **SMALL)


def pair() -> Any:
    return different([small_pipeline(0), small_pipeline(1)]).pipeline()


def test_an_interval_of_all_steps_is_plain_guidance_and_an_empty_one_is_none() -> None:
    pipeline = pair()
    with guidance_interval(pipeline):
        whole = draw(pipeline, **SMALL)
    np.testing.assert_array_equal(whole, draw(pipeline, **SMALL))
    with guidance_interval(pipeline, 0.4, 0.4):
        none = draw(pipeline, **SMALL)
    np.testing.assert_allclose(none, draw(pipeline, guidance_scale=1.0, **SMALL), atol=ATOL)
    assert unlike(whole, none)
    np.testing.assert_array_equal(whole, draw(pipeline, **SMALL))  # nothing stays behind


def switched_off_after(step: int) -> Callable[..., dict[str, Any]]:
    """A callback that ends guidance after a step, as diffusers' documentation shows."""

    def change(pipe: Any, index: int, time: Any, state: dict[str, Any]) -> dict[str, Any]:
        if index + 1 == step:
            state["prompt_embeds"] = state["prompt_embeds"].chunk(2)[-1]
            pipe._guidance_scale = 0.0
        return state

    return change


@pytest.mark.parametrize("scheduler", [None, EulerDiscreteScheduler, PNDMScheduler])
def test_guidance_that_stops_early_is_what_a_callback_does(scheduler: Any) -> None:
    pipeline = pair()
    if scheduler is not None:
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, skip_prk_steps=True)
    call = {**SMALL, "num_inference_steps": 4}
    done = 3 if scheduler is PNDMScheduler else 2  # PNDM evaluates its second time twice
    ended = {"callback_on_step_end": switched_off_after(done), "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    expected = draw(pipeline, **call, **ended)
    with guidance_interval(pipeline, 0.0, 0.5):
        np.testing.assert_allclose(draw(pipeline, **call), expected, atol=ATOL)
    assert unlike(expected, draw(pipeline, **call), 1e-4)


def test_steps_without_guidance_compute_one_half() -> None:
    pipeline, batches = pair(), []
    pipeline.unet.denoisers[1].conv_out.register_forward_hook(lambda module, args, output: batches.append(len(output)))
    with guidance_interval(pipeline, 0.25, 0.7):
        draw(pipeline, num_inference_steps=4, prompt=["a fox", "an owl"], negative_prompt=["", "dull"], **SMALL)
    assert batches == [2, 4, 4, 2]


def test_the_interval_counts_the_steps_that_are_drawn() -> None:
    ensemble, batches = different([small_pipeline(0)]), []
    pipeline = ensemble.pipeline(StableDiffusionImg2ImgPipeline)
    ensemble.denoisers[0].conv_out.register_forward_hook(lambda module, args, output: batches.append(len(output)))
    with guidance_interval(pipeline, 0.0, 0.5):
        for _ in range(2):
            draw(pipeline, image=picture(), strength=0.5, num_inference_steps=8)
    assert batches == 2 * [2, 2, 1, 1]


def test_an_interval_holds_with_a_controlnet() -> None:
    whole = [small_pipeline(0), small_pipeline(0)]
    net = controlnet(whole[0].unet)
    cls = StableDiffusionControlNetPipeline
    drawn = []
    for pipeline in (stock(cls, whole[0], controlnet=net), different(whole).pipeline(cls, controlnet=net)):
        with guidance_interval(pipeline, 0.3, 0.7):
            drawn.append(draw(pipeline, image=picture(2)))
    np.testing.assert_allclose(drawn[1], drawn[0], atol=ATOL)
    assert unlike(drawn[0], draw(stock(cls, whole[0], controlnet=net), image=picture(2)), 1e-3)


def test_an_interval_holds_for_transformers() -> None:
    pipeline, call = sd3()

    def one(**changed: Any) -> np.ndarray:
        return pipeline(**{**call, **changed}, generator=generator(1)).images

    whole = one()
    with guidance_interval(pipeline):
        np.testing.assert_array_equal(one(), whole)
    with guidance_interval(pipeline, 0.0, 0.0):
        none = one()
    np.testing.assert_allclose(none, one(guidance_scale=1.0), atol=ATOL)
    assert unlike(none, whole, 1e-3)


@pytest.mark.parametrize("shares", [(-0.1, 1.0), (0.0, 1.5), (0.6, 0.4)])
def test_shares_in_no_order_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"0 <= start <= stop <= 1"), guidance_interval(pair(), *shares):
        pass


def test_an_interval_with_perturbed_attention_is_refused() -> None:
    pipeline = different([small_pipeline(0)]).pipeline(StableDiffusionPAGPipeline, pag_applied_layers=["mid"])
    with (
        pytest.raises(ValueError, match=r"perturbed-attention guidance makes three parts.*pag_scale=0"),
        guidance_interval(pipeline, 0.0, 0.5),
    ):
        draw(pipeline, pag_scale=3.0, **SMALL)


def consistency_model() -> Any:
    return small_pipeline(0, unet=small_unet(0, time_cond_proj_dim=8))


@pytest.mark.parametrize(("build", "scale"), [(small_pipeline, 1.0), (consistency_model, 4.0)])
def test_an_interval_of_a_drawing_without_guidance_is_refused(build: Callable[[], Any], scale: float) -> None:
    pipeline = different([build()]).pipeline()
    with (
        pytest.raises(ValueError, match=r"guidance scale is at most 1, or the first expert is told the scale"),
        guidance_interval(pipeline, 0.0, 0.5),
    ):
        draw(pipeline, guidance_scale=scale, **SMALL)


@pytest.mark.parametrize(
    "build",
    [object, tiny_chroma_pipeline, tiny_z_image_pipeline, tiny_flux2_pipeline],
    ids=["none", "one half after the other", "lists", "two calls"],
)
def test_an_interval_without_guidance_of_two_halves_is_refused(build: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="has no classifier-free guidance in one call"), guidance_interval(build()):
        pass
