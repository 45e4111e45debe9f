"""Ensembles of Stable Diffusion 3 models in unmodified diffusers pipelines."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
)

from diffusemble import EnsembleDenoiser, pack_text
from diffusemble.blocks.packing import PartwiseText, by_expert
from tiny import LENGTH, WIDTH, as_expert
from tiny_dit import T5_WIDTH, sd3_controlnet, tiny_flow_vae, tiny_sd3, tiny_sd3_pipeline
from tiny_ensembles import NEGATIVE, check_copies, check_different, wide_picture


def draw(pipeline: Any, **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(5)  # the ControlNet's picture is encoded with the global generator
    settings = {
        "prompt": "a red fox",
        "negative_prompt": NEGATIVE,
        "guidance_scale": 4.0,
        "height": 16,
        "width": 24,
        "num_inference_steps": 2,
        "max_sequence_length": 12,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(11),
    }
    return pipeline(**{**settings, **options}).images


WHOLE = tiny_sd3_pipeline
NO_T5 = partial(tiny_sd3_pipeline, text_encoder_3=None, tokenizer_3=None)
WIDE = partial(
    tiny_sd3_pipeline,
    transformer=tiny_sd3(in_channels=16, out_channels=16),
    vae=tiny_flow_vae(latent_channels=16),  # the inpainting pipeline knows no other number
)
MASK = (wide_picture(1)[:, :1] > 0.5).float()
CONTROLLED = {"control_image": wide_picture(2), "controlnet_conditioning_scale": 0.7}

Given = Callable[[Any], dict[str, Any]]
PIPELINES: dict[str, tuple[Callable[[], Any], type | None, Given, dict[str, Any]]] = {
    "text": (WHOLE, None, lambda _: {}, {}),
    "without guidance": (WHOLE, None, lambda _: {}, {"guidance_scale": 1.0}),
    "batch": (
        WHOLE,
        None,
        lambda _: {},
        {"prompt": ["a fox", "an owl"], "negative_prompt": ["", NEGATIVE], "num_images_per_prompt": 2, "clip_skip": 1},
    ),
    "without T5": (NO_T5, None, lambda _: {}, {}),
    "skipped layers": (
        WHOLE,
        None,
        lambda _: {},
        {"skip_guidance_layers": [1, 2], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0},
    ),
    "img2img": (WHOLE, StableDiffusion3Img2ImgPipeline, lambda _: {}, {"image": wide_picture(), "strength": 0.7}),
    "inpaint": (
        WIDE,
        StableDiffusion3InpaintPipeline,
        lambda _: {},
        {"image": wide_picture(), "mask_image": MASK, "strength": 0.9},
    ),
    "controlnet": (
        WHOLE,
        StableDiffusion3ControlNetPipeline,
        lambda m: {"controlnet": sd3_controlnet(m)},
        CONTROLLED,
    ),
    "controlnet without T5": (
        NO_T5,
        StableDiffusion3ControlNetPipeline,
        lambda m: {"controlnet": sd3_controlnet(m)},
        CONTROLLED,
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_copies_of_one_expert_draw_what_it_draws(name: str) -> None:
    build, cls, given, options = PIPELINES[name]
    whole = build()
    check_copies(whole, partial(draw, **options), cls, given(whole.transformer))


def test_different_experts_draw_something_of_their_own() -> None:
    check_different([tiny_sd3_pipeline(seed) for seed in (1, 2)], draw)


@pytest.mark.parametrize("t5", [True, False], ids=["with T5", "without T5"])
def test_every_expert_gets_exactly_its_own_text(t5: bool) -> None:
    # A pipeline packs encoder by encoder; called by hand, an ensemble takes what is packed expert by expert.
    build = tiny_sd3_pipeline if t5 else NO_T5
    wholes = [build(seed) for seed in (1, 2, 3)]
    experts = [as_expert(whole, f"expert {seed}") for seed, whole in enumerate(wholes)]
    ensemble = EnsembleDenoiser(experts)
    given = {"prompt": "a red fox", "prompt_2": None, "prompt_3": None, "max_sequence_length": 12}
    text, _, pooled, _ = ensemble.pipeline().encode_prompt(**given)
    own = [whole.encode_prompt(**given) for whole in wholes]
    call = {"hidden_states": torch.randn(1, 4, 8, 12), "timestep": torch.tensor([300.0])}
    with torch.no_grad():
        piped = ensemble.pipeline().transformer(**call, encoder_hidden_states=text, pooled_projections=pooled).sample
        by_hand = ensemble(
            **call,
            encoder_hidden_states=pack_text([one[0] for one in own]),
            pooled_projections=pack_text([one[2] for one in own]),
        ).sample
    assert torch.equal(piped, by_hand)


def test_parts_are_sorted_by_expert() -> None:
    packed = torch.tensor([[1, 2, 10, 11, 20, 21]])  # widths 1 and 2 of two experts: [1 | 2], [10 11 | 20 21]
    assert by_expert(packed, (1, 2), 2).tolist() == [[1, 10, 11, 2, 20, 21]]
    layout = PartwiseText(tokens=1, pooled=(1, 2), t5=False)
    tokens = torch.tensor([1.0, 2.0, 9.0])[None, :, None]  # a CLIP token of each expert, and a token of nobody
    found = layout.sorted({"encoder_hidden_states": tokens, "pooled_projections": packed}, 2)
    assert found["encoder_hidden_states"].flatten().tolist() == [1, 9, 2, 9]
    assert layout.sorted({"encoder_hidden_states": None, "pooled_projections": None}, 2) == {
        "encoder_hidden_states": None,
        "pooled_projections": None,
    }


def test_a_controlnet_reads_the_text_of_the_first_expert() -> None:
    wholes = [tiny_sd3_pipeline(seed) for seed in (1, 2)]
    ensemble = EnsembleDenoiser([as_expert(whole, f"expert {seed}") for seed, whole in enumerate(wholes)])
    net = sd3_controlnet(wholes[0].transformer)
    seen: list[dict[str, Any]] = []
    net.register_forward_hook(lambda _, args, given, out: seen.append(given), with_kwargs=True)
    draw(ensemble.pipeline(StableDiffusion3ControlNetPipeline, controlnet=net), guidance_scale=1.0, **CONTROLLED)
    with torch.no_grad():
        text = wholes[0].encode_prompt("a red fox", None, None, max_sequence_length=12)[0]
    assert seen[0]["encoder_hidden_states"].shape == (1, LENGTH + 12, T5_WIDTH)
    assert torch.equal(seen[0]["encoder_hidden_states"], text)
    assert seen[0]["pooled_projections"].shape == (1, 2 * WIDTH)


def test_experts_with_and_without_t5_are_refused() -> None:
    ensemble = EnsembleDenoiser([as_expert(tiny_sd3_pipeline(1), "large"), as_expert(NO_T5(2), "small")])
    with pytest.raises(ValueError, match=r"Expert 'small' has no text_encoder_3, but others have one. Every expert"):
        ensemble.pipeline()
