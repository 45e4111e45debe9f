"""IP-Adapters that a pipeline loads reach every expert."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stock import small_pipeline, small_sdxl
from tiny_dit import tiny_sd3_pipeline
from tiny_ensembles import ATOL, SMALL, different, draw, unlike
from transformer_cases import load_sd3_image_prompt
from unet_inputs import IMAGE_WIDTH, image_prompt_weights, randn

BUILDS = {"SD": small_pipeline, "SDXL": small_sdxl}
QUIET = {"subfolder": None, "weight_name": "none", "image_encoder_folder": None}
SHORT = {**SMALL, "num_inference_steps": 1}
LEFT = torch.zeros(1, 1, 16, 16)
LEFT[..., :8] = 1
STYLE = {"up": {"block_1": [0.0, 1.0]}}


def embeddings(count: int) -> list[torch.Tensor]:
    """One picture per adapter, without and with guidance."""
    return [randn(2, 1, IMAGE_WIDTH, seed=5 + number) for number in range(count)]


def prompted(pipeline: Any, count: int = 1, **call: Any) -> np.ndarray:
    return draw(pipeline, ip_adapter_image_embeds=embeddings(count), **SHORT, **call)


def load(pipeline: Any, unet: Any, count: int = 1) -> None:
    pipeline.load_ip_adapter([image_prompt_weights(unet, number) for number in range(count)], **_quiet(count))


def _quiet(count: int) -> dict[str, Any]:
    return {**QUIET, "weight_name": ["none"] * count}


@pytest.mark.parametrize("name", BUILDS)
def test_two_equal_experts_draw_with_image_prompts_what_one_draws(name: str) -> None:
    build = BUILDS[name]
    alone, together = build(0), different([build(0), build(0)]).pipeline()
    plain, drawn = draw(alone, **SHORT), {}
    masks = {"cross_attention_kwargs": {"ip_adapter_masks": [LEFT, 1 - LEFT]}}
    for pipeline in (alone, together):
        pictures = drawn.setdefault(pipeline is together, [])
        load(pipeline, alone.unet)
        pictures.append(prompted(pipeline))
        pipeline.set_ip_adapter_scale(0.4)
        pictures.append(prompted(pipeline))
        pipeline.set_ip_adapter_scale(STYLE)
        pictures.append(prompted(pipeline))
        pipeline.unload_ip_adapter()
        pictures.append(draw(pipeline, **SHORT))
        load(pipeline, alone.unet, 2)
        pipeline.set_ip_adapter_scale([0.9, 0.3])
        pictures += [prompted(pipeline, 2), prompted(pipeline, 2, **masks)]
        pipeline.set_ip_adapter_scale([STYLE, 0.5])
        pictures.append(prompted(pipeline, 2, **masks))
    np.testing.assert_allclose(drawn[True], drawn[False], atol=ATOL)
    np.testing.assert_allclose(drawn[True][3], plain, atol=ATOL)
    others = [plain, *drawn[True][:3], *drawn[True][4:]]
    assert all(unlike(one, other, 1e-3) for i, one in enumerate(others) for other in others[:i])


def test_an_image_prompt_reaches_both_of_two_different_experts() -> None:
    whole = [small_pipeline(seed) for seed in range(2)]
    pipeline = different(whole).pipeline()
    load(pipeline, whole[0].unet)
    drawn = [prompted(pipeline)]
    for one in whole:
        processors = [each for each in one.unet.attn_processors.values() if hasattr(each, "scale")]
        for each in processors:
            each.scale = [0.0]
        drawn.append(prompted(pipeline))
        for each in processors:
            each.scale = [1.0]
    assert all(unlike(one, other, 1e-3) for i, one in enumerate(drawn) for other in drawn[:i])


def test_image_prompts_that_the_experts_brought_are_used() -> None:
    whole = [small_pipeline(0), small_pipeline(0)]
    for one in whole:
        load(one, one.unet)
    np.testing.assert_allclose(prompted(different(whole).pipeline()), prompted(whole[0]), atol=ATOL)


def test_the_image_prompts_of_sd3_are_taken_off_every_expert() -> None:
    wholes = [tiny_sd3_pipeline(seed) for seed in (0, 1)]
    for whole in wholes:
        load_sd3_image_prompt(whole.transformer)
    pipeline = different(wholes).pipeline()
    pipeline.unload_ip_adapter()
    pictures = {"joint_attention_kwargs": {"ip_adapter_image_embeds": randn(2, 6, IMAGE_WIDTH)}}
    with pytest.raises(ValueError, match="this SD3 transformer has no IP-Adapter"):
        draw(pipeline, **SHORT, **pictures)


def test_adapters_of_another_number_are_counted_on_every_expert() -> None:
    pipeline = different([small_pipeline(0), small_pipeline(1)]).pipeline()
    load(pipeline, pipeline.unet.denoisers[0])
    with pytest.raises(ValueError, match="Cannot assign 2 scale_configs to 1 IP-Adapter"):
        pipeline.set_ip_adapter_scale([1.0, 0.5])
