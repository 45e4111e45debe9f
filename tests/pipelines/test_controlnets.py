"""ControlNets and T2I-adapters on an ensemble."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    MultiAdapter,
    MultiControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
    T2IAdapter,
)

from diffusemble import pack_text
from stock import small_pipeline, small_sdxl
from tiny import as_expert, randomised
from tiny_ensembles import ATOL, SMALL, N, controlnet, copies, different, draw, mask, picture, stock, unlike

HINT, SEVERAL = picture(2), [picture(2), picture(3)]
STRENGTHS = {"controlnet_conditioning_scale": [1.0, 0.5], "control_guidance_end": [1.0, 0.6]}
IMG2IMG = {"image": picture(), "strength": 0.7, "num_inference_steps": 3}
INPAINT = {"image": picture(), "mask_image": mask(), "strength": 1.0, **SMALL}

Make = Callable[[Any], Any]


def one_net(unet: Any) -> Any:
    return controlnet(unet)


def two_nets(unet: Any) -> list[Any]:
    return [controlnet(unet), controlnet(unet, 22)]


def multi_net(unet: Any) -> Any:
    return MultiControlNetModel(two_nets(unet))


def union(unet: Any) -> ControlNetUnionModel:
    """A ControlNet that reads pictures of six kinds."""
    taken = inspect.signature(ControlNetUnionModel).parameters
    shared = {name: value for name, value in unet.config.items() if name in taken}
    sizes = {"num_control_type": 6, "num_trans_head": 2, "num_trans_channel": 8, "num_proj_channel": 8}
    torch.manual_seed(23)
    return randomised(ControlNetUnionModel(**shared, conditioning_embedding_out_channels=(8, 8), **sizes), 23)


CONTROLLED: dict[str, tuple[Callable[..., Any], type, Make, dict[str, Any]]] = {
    "one": (small_pipeline, StableDiffusionControlNetPipeline, one_net, {"image": HINT}),
    "guess mode": (
        small_pipeline,
        StableDiffusionControlNetPipeline,
        one_net,
        {"image": HINT, "guess_mode": True, "controlnet_conditioning_scale": 0.8},
    ),
    "two": (small_pipeline, StableDiffusionControlNetPipeline, two_nets, {"image": SEVERAL, **STRENGTHS}),
    "two in one model": (small_pipeline, StableDiffusionControlNetPipeline, multi_net, {"image": SEVERAL, **STRENGTHS}),
    "image to image": (
        small_pipeline,
        StableDiffusionControlNetImg2ImgPipeline,
        one_net,
        {**IMG2IMG, "control_image": HINT},
    ),
    "two, image to image": (
        small_pipeline,
        StableDiffusionControlNetImg2ImgPipeline,
        two_nets,
        {**IMG2IMG, "control_image": SEVERAL, **STRENGTHS},
    ),
    "inpaint": (
        small_pipeline,
        StableDiffusionControlNetInpaintPipeline,
        one_net,
        {**INPAINT, "control_image": HINT},
    ),
    "SDXL": (small_sdxl, StableDiffusionXLControlNetPipeline, one_net, {"image": HINT, **SMALL}),
    "SDXL, guess mode": (
        small_sdxl,
        StableDiffusionXLControlNetPipeline,
        one_net,
        {"image": HINT, "guess_mode": True, **SMALL},
    ),
    "SDXL, two": (
        small_sdxl,
        StableDiffusionXLControlNetPipeline,
        two_nets,
        {"image": SEVERAL, **STRENGTHS, **SMALL},
    ),
    "SDXL, union": (
        small_sdxl,
        StableDiffusionXLControlNetUnionPipeline,
        union,
        {"control_image": [HINT], "control_mode": [3], **SMALL},
    ),
    "SDXL, image to image": (
        small_sdxl,
        StableDiffusionXLControlNetImg2ImgPipeline,
        one_net,
        {**IMG2IMG, "control_image": HINT, **SMALL},
    ),
    "SDXL, inpaint": (
        small_sdxl,
        StableDiffusionXLControlNetInpaintPipeline,
        one_net,
        {**INPAINT, "control_image": HINT},
    ),
}


@pytest.mark.parametrize("name", CONTROLLED)
def test_a_controlnet_steers_the_ensemble_as_it_steers_one(name: str) -> None:
    build, cls, make, options = CONTROLLED[name]
    whole = build()
    net = make(whole.unet)
    expected = draw(stock(cls, whole, controlnet=net), **options)
    drawn = draw(copies(as_expert(whole)).pipeline(cls, controlnet=net), **options)
    np.testing.assert_allclose(drawn, expected, atol=ATOL)
    silent = [0.0, 0.0] if isinstance(net, (list, MultiControlNetModel)) else 0.0
    assert unlike(expected, draw(stock(cls, whole, controlnet=net), **{**options, **_weight(silent)}), 1e-3)


def _weight(value: Any) -> dict[str, Any]:
    return {"controlnet_conditioning_scale": value}


@pytest.mark.parametrize("make", [one_net, multi_net])
@pytest.mark.parametrize("build", [small_pipeline, small_sdxl])
def test_a_controlnet_reads_the_text_of_the_first_expert(build: Callable[[int], Any], make: Make) -> None:
    whole = [build(seed) for seed in range(N)]
    net = make(whole[0].unet)
    xl = build is small_sdxl
    cls = StableDiffusionXLControlNetPipeline if xl else StableDiffusionControlNetPipeline
    pipeline = different(whole).pipeline(cls, controlnet=net)
    texts = [torch.randn(2, 16, 64 if xl else 32) for _ in range(N)]
    pooled = [torch.randn(2, 32) for _ in range(N)]
    sample, hint, time = torch.randn(2, 4, 8, 8), torch.rand(2, 3, 16, 16), torch.tensor(5)
    several = isinstance(net, MultiControlNetModel)

    def given(text: torch.Tensor, pool: torch.Tensor) -> dict[str, Any]:
        added = {"text_embeds": pool, "time_ids": torch.ones(2, 6)} if xl else None
        hints = {"controlnet_cond": [hint, hint], "conditioning_scale": [1.0, 0.5]} if several else {}
        return {
            "encoder_hidden_states": text,
            "controlnet_cond": hint,
            "conditioning_scale": 1.0,
            "added_cond_kwargs": added,
            "return_dict": False,
            **hints,
        }

    mine = pipeline.controlnet(sample, time, **given(pack_text(texts), pack_text(pooled)))
    expected = net(sample, time, **given(texts[0], pooled[0]))
    assert torch.equal(mine[1], expected[1])


def test_a_controlnet_changes_the_picture_of_two_different_experts() -> None:
    whole = [small_pipeline(seed) for seed in range(2)]
    pipeline = different(whole).pipeline(StableDiffusionControlNetPipeline, controlnet=one_net(whole[0].unet))
    drawn = [draw(pipeline, image=HINT, **_weight(weight)) for weight in (0.0, 0.6, 1.0)]
    np.testing.assert_allclose(drawn[0], draw(different(whole).pipeline(), **SMALL), atol=ATOL)
    assert unlike(drawn[0], drawn[1])
    assert unlike(drawn[1], drawn[2])


def test_a_controlnet_given_to_an_ensemble_stays_as_it_was() -> None:
    whole = small_pipeline()
    net = controlnet(whole.unet)
    pipeline = copies(as_expert(whole)).pipeline(StableDiffusionControlNetPipeline, controlnet=net)
    assert not net._forward_pre_hooks
    assert isinstance(pipeline.controlnet, ControlNetModel)
    assert pipeline.controlnet.conv_in.weight is net.conv_in.weight


def t2i(seed: int, xl: bool = False) -> T2IAdapter:
    torch.manual_seed(seed)
    kind, factor = ("full_adapter_xl", 4) if xl else ("full_adapter", 2)
    channels = [8, 16, 16] if xl else [8, 16]
    return randomised(T2IAdapter(3, channels, num_res_blocks=1, downscale_factor=factor, adapter_type=kind), seed)


ADAPTERS: dict[str, tuple[Callable[..., Any], type, Callable[[], Any], Any]] = {
    "one": (small_pipeline, StableDiffusionAdapterPipeline, lambda: t2i(4), HINT),
    "two": (small_pipeline, StableDiffusionAdapterPipeline, lambda: MultiAdapter([t2i(4), t2i(5)]), SEVERAL),
    "SDXL": (small_sdxl, StableDiffusionXLAdapterPipeline, lambda: t2i(6), HINT),
}


@pytest.mark.filterwarnings("ignore:The decode_latents method is deprecated:FutureWarning")  # in diffusers' pipeline
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_t2i_adapter_steers_the_ensemble_as_it_steers_one(name: str) -> None:
    build, cls, make, hint = ADAPTERS[name]
    whole, adapter = build(), make()
    one, together = stock(cls, whole, adapter=adapter), copies(as_expert(whole)).pipeline(cls, adapter=adapter)
    several = isinstance(adapter, MultiAdapter)
    call = {"image": hint, "adapter_conditioning_scale": [1.0, 0.5] if several else 0.9, **SMALL}
    expected = draw(one, **call)
    np.testing.assert_allclose(draw(together, **call), expected, atol=ATOL)
    assert unlike(expected, draw(whole, **SMALL), 1e-3)
    other = different([build(0), build(1)])
    assert unlike(draw(other.pipeline(cls, adapter=adapter), **call), draw(other.pipeline(), **SMALL), 1e-3)
