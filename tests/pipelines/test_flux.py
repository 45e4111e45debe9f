"""Ensembles of FLUX and Chroma models in unmodified diffusers pipelines."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ChromaImg2ImgPipeline,
    FluxControlNetImg2ImgPipeline,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxMultiControlNetModel,
)

from diffusemble import EnsembleDenoiser, pack_text
from law_families import flux_arguments
from tiny import as_expert
from tiny_dit import flux_controlnet, tiny_chroma_pipeline, tiny_flux, tiny_flux_pipeline, tiny_t5
from tiny_ensembles import NEGATIVE, check_copies, check_different, copies, wide_picture
from transformer_cases import IMAGE_WIDTH, load_flux_image_prompt
from unet_inputs import randn


def draw(pipeline: Any, **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    settings = {
        "prompt": "a red fox",
        "height": 16,
        "width": 24,
        "num_inference_steps": 2,
        "max_sequence_length": 12,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(11),
    }
    return pipeline(**{**settings, **options}).images


WHOLE = tiny_flux_pipeline
FILL = partial(tiny_flux_pipeline, transformer=tiny_flux(in_channels=2 * 16 + 4 * 4, out_channels=16))
CONTROL = partial(tiny_flux_pipeline, transformer=tiny_flux(in_channels=32, out_channels=16))
MASK = (wide_picture(1)[:, :1] > 0.5).float()
CONTROLLED = {"control_image": wide_picture(2), "controlnet_conditioning_scale": 0.7}

Given = Callable[[Any], dict[str, Any]]
PIPELINES: dict[str, tuple[Callable[[], Any], type | None, Given, dict[str, Any]]] = {
    "text": (WHOLE, None, lambda _: {}, {}),
    "batch": (
        WHOLE,
        None,
        lambda _: {},
        {"prompt": ["a red fox", "an owl"], "prompt_2": ["at night", "by day"], "num_images_per_prompt": 2},
    ),
    "true guidance": (
        partial(tiny_flux_pipeline, transformer=tiny_flux(guidance_embeds=False)),
        None,
        lambda _: {},
        {"negative_prompt": NEGATIVE, "true_cfg_scale": 3.0},
    ),
    "img2img": (WHOLE, FluxImg2ImgPipeline, lambda _: {}, {"image": wide_picture(), "strength": 0.7}),
    "inpaint": (
        WHOLE,
        FluxInpaintPipeline,
        lambda _: {},
        {"image": wide_picture(), "mask_image": MASK, "strength": 0.9},
    ),
    "fill": (FILL, FluxFillPipeline, lambda _: {}, {"image": wide_picture(), "mask_image": MASK}),
    "control": (CONTROL, FluxControlPipeline, lambda _: {}, {"control_image": wide_picture(2)}),
    "chroma": (
        tiny_chroma_pipeline,
        None,
        lambda _: {},
        {"prompt": ["a red fox at night", "an owl"], "negative_prompt": ["", NEGATIVE], "num_images_per_prompt": 2},
    ),
    "chroma img2img": (
        tiny_chroma_pipeline,
        ChromaImg2ImgPipeline,
        lambda _: {},
        {"image": wide_picture(), "strength": 0.7},
    ),
    "controlnet": (WHOLE, FluxControlNetPipeline, lambda m: {"controlnet": flux_controlnet(m)}, CONTROLLED),
    "controlnet img2img": (
        WHOLE,
        FluxControlNetImg2ImgPipeline,
        lambda m: {"controlnet": flux_controlnet(m)},
        {**CONTROLLED, "image": wide_picture(), "strength": 0.7},
    ),
    "two controlnets": (
        WHOLE,
        FluxControlNetPipeline,
        lambda m: {"controlnet": FluxMultiControlNetModel([flux_controlnet(m), flux_controlnet(m)])},
        {"control_image": [wide_picture(2), wide_picture(3)], "controlnet_conditioning_scale": [0.7, 0.4]},
    ),
}


# diffusers' own ControlNet calls what diffusers announces the end of.
@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", PIPELINES)
def test_copies_of_one_expert_draw_what_it_draws(name: str) -> None:
    build, cls, given, options = PIPELINES[name]
    whole = build()
    check_copies(whole, partial(draw, **options), cls, given(whole.transformer))


def test_different_experts_draw_something_of_their_own() -> None:
    check_different([tiny_flux_pipeline(seed) for seed in (1, 2)], draw)


def test_every_expert_reads_the_prompt_with_its_own_encoders() -> None:
    wholes = [tiny_flux_pipeline(1), tiny_flux_pipeline(1, text_encoder_2=tiny_t5(9))]
    ensemble = EnsembleDenoiser([as_expert(whole, f"expert {number}") for number, whole in enumerate(wholes)])
    given = {"prompt": "a red fox", "prompt_2": None, "max_sequence_length": 12}
    text, pooled, ids = ensemble.pipeline().encode_prompt(**given)
    own = [whole.encode_prompt(**given) for whole in wholes]
    assert torch.equal(text, pack_text([one[0] for one in own]))
    assert torch.equal(pooled, pack_text([one[1] for one in own]))
    assert ids.shape == (24, 3)
    assert not torch.equal(own[0][0], own[1][0])


def test_chromas_experts_read_the_prompt_with_their_own_encoders() -> None:
    wholes = [tiny_chroma_pipeline(seed) for seed in (1, 2)]
    ensemble = EnsembleDenoiser([as_expert(whole, f"expert {number}") for number, whole in enumerate(wholes)])
    given = {"prompt": "a red fox", "max_sequence_length": 16, "do_classifier_free_guidance": False}
    arguments = flux_arguments(randn(1, 16, 4, 6), torch.tensor([700.0]), [torch.zeros(1, 16, 1)])
    for name in ("guidance", "pooled_projections"):
        del arguments[name]
    with torch.no_grad():
        text, ids, mask, *_ = ensemble.pipeline().encode_prompt(**given)
        own = [whole.encode_prompt(**given)[0] for whole in wholes]
        mask = torch.cat([mask, torch.ones(1, 24)], dim=1)
        arguments |= {"txt_ids": ids, "attention_mask": mask}
        piped = ensemble.pipeline().transformer(**{**arguments, "encoder_hidden_states": text}).sample
        by_hand = ensemble(**{**arguments, "encoder_hidden_states": pack_text(own)}).sample
    assert torch.equal(piped, by_hand)


def test_an_image_prompt_steers_the_ensemble_as_it_steers_one() -> None:
    model = tiny_flux()
    load_flux_image_prompt(model)
    whole = tiny_flux_pipeline(transformer=model)
    options = {
        "ip_adapter_image_embeds": [randn(1, 1, IMAGE_WIDTH, seed=50)],
        "negative_ip_adapter_image_embeds": [torch.zeros(1, 1, IMAGE_WIDTH)],
    }
    expected = draw(whole, **options)
    assert (
        np.abs(expected - draw(whole, **{**options, "ip_adapter_image_embeds": [torch.zeros(1, 1, 12)]})).max() > 0.01
    )
    np.testing.assert_array_equal(draw(copies(as_expert(whole), 2).pipeline(), **options), expected)


def test_the_pipeline_reads_the_ensemble_as_one_transformer() -> None:
    whole = tiny_flux_pipeline()
    ensemble = copies(as_expert(whole), 2)
    pipeline = ensemble.pipeline()
    assert pipeline.transformer is ensemble
    assert pipeline.transformer.config is whole.transformer.config
    with pipeline.transformer.cache_context("cond"):
        assert pipeline.transformer.dtype == torch.float32
    with pytest.raises(
        ValueError, match=r"does not take the part 'transformer'. Its parts, .* place of the transformer"
    ):
        ensemble.pipeline(transformer=whole.transformer)
