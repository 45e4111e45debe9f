"""The ensemble in unmodified diffusers pipelines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)

from diffusemble import EnsembleDenoiser, pack_text
from diffusemble.experts.expert import Expert
from tiny import (
    as_expert,
    randomised,
    tiny_pipeline,
    tiny_refiner,
    tiny_sdxl_pipeline,
    tiny_text_encoder,
    tiny_unet,
)
from unet_inputs import IMAGE_WIDTH, load_image_prompts

N = 3
PROMPT = "a red fox"
NEGATIVE = "blurry, of many fingers and too long for the context"
ATOL = 2e-5


def copies(expert: Expert, n: int = N) -> EnsembleDenoiser:
    """An ensemble of n experts that are all the same."""
    return EnsembleDenoiser(
        [Expert(f"copy {i}", expert.denoiser, expert.components, expert.pipeline_class) for i in range(n)]
    )


def picture(seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def draw(pipeline: Any, **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    settings = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "num_inference_steps": 3,
        "guidance_scale": 4.0,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(11),
    }
    return pipeline(**{**settings, **options}).images


def controlnet(unet: Any) -> ControlNetModel:
    torch.manual_seed(21)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8))
    return randomised(net, 21)


SMALL = {"height": 16, "width": 16}
IMG2IMG = {"image": picture(), "strength": 0.7, "num_inference_steps": 5}
INPAINT = {"image": picture(), "mask_image": (picture(1)[:, :1] > 0.5).float(), "strength": 1.0, **SMALL}

PIPELINES: dict[str, tuple[Callable[[], Any], type | None, dict[str, Any]]] = {
    "SD": (tiny_pipeline, None, SMALL),
    "SD without guidance": (tiny_pipeline, None, {**SMALL, "guidance_scale": 1.0}),
    "SD, batch": (
        tiny_pipeline,
        None,
        {**SMALL, "prompt": [PROMPT, "an owl"], "negative_prompt": ["", NEGATIVE], "num_images_per_prompt": 2},
    ),
    "SD, guidance rescale": (tiny_pipeline, None, {**SMALL, "guidance_rescale": 0.7}),
    "img2img": (tiny_pipeline, StableDiffusionImg2ImgPipeline, IMG2IMG),
    "inpaint, 4 channels": (tiny_pipeline, StableDiffusionInpaintPipeline, INPAINT),
    "inpaint, 9 channels": (
        lambda: tiny_pipeline(unet=tiny_unet(in_channels=9)),
        StableDiffusionInpaintPipeline,
        INPAINT,
    ),
    "SDXL": (tiny_sdxl_pipeline, None, SMALL),
    "SDXL without negative prompt": (tiny_sdxl_pipeline, None, {**SMALL, "negative_prompt": None}),
    "SDXL, clip_skip and batch": (
        tiny_sdxl_pipeline,
        None,
        {
            **SMALL,
            "clip_skip": 1,
            "prompt": [PROMPT, "an owl"],
            "prompt_2": ["at night", "by day"],
            "negative_prompt": [NEGATIVE, "dull"],
            "num_images_per_prompt": 2,
        },
    ),
    "SDXL img2img": (tiny_sdxl_pipeline, StableDiffusionXLImg2ImgPipeline, IMG2IMG),
    "SDXL refiner": (tiny_refiner, None, IMG2IMG),
    "SDXL inpaint": (tiny_sdxl_pipeline, StableDiffusionXLInpaintPipeline, INPAINT),
}


def plain(whole: Any, cls: type | None) -> Any:
    return whole if cls is None else cls.from_pipe(whole)


@pytest.mark.parametrize("name", PIPELINES)
def test_copies_of_one_expert_draw_what_it_draws(name: str) -> None:
    build, cls, options = PIPELINES[name]
    whole = build()
    together, alone = copies(as_expert(whole)), copies(as_expert(whole), 1)
    expected = draw(plain(whole, cls), **options)
    assert expected.std() > 0.05
    np.testing.assert_array_equal(draw(alone.pipeline(cls), **options), expected)
    np.testing.assert_allclose(draw(together.pipeline(cls), **options), expected, atol=ATOL)


CONTROLLED: dict[str, tuple[Callable[[], Any], type, dict[str, Any]]] = {
    "ControlNet": (tiny_pipeline, StableDiffusionControlNetPipeline, {"image": picture(2)}),
    "ControlNet, img2img": (
        tiny_pipeline,
        StableDiffusionControlNetImg2ImgPipeline,
        {**IMG2IMG, "control_image": picture(2)},
    ),
    "ControlNet, SDXL": (tiny_sdxl_pipeline, StableDiffusionXLControlNetPipeline, {"image": picture(2), **SMALL}),
}


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", CONTROLLED)
def test_a_controlnet_steers_the_ensemble_as_it_steers_one(name: str, several: bool) -> None:
    build, cls, options = CONTROLLED[name]
    whole = build()
    net = controlnet(whole.unet)
    if several:
        net, key = [net, net], "control_image" if "control_image" in options else "image"
        options = {**options, key: [options[key], picture(3)], "controlnet_conditioning_scale": [1.0, 0.5]}
    parts = {name: part for name, part in as_expert(whole).components.items() if not isinstance(part, bool)}
    expected = draw(cls(**{**whole.components, **parts, "controlnet": net}, **_unchecked(cls)), **options)
    drawn = draw(copies(as_expert(whole)).pipeline(cls, controlnet=net), **options)
    assert np.abs(expected - draw(whole, **SMALL)).max() > 0.01
    np.testing.assert_allclose(drawn, expected, atol=ATOL)


def _unchecked(cls: type) -> dict[str, bool]:
    return {} if "XL" in cls.__name__ else {"requires_safety_checker": False}


@pytest.mark.parametrize("build", [tiny_pipeline, tiny_sdxl_pipeline])
def test_a_controlnet_reads_the_text_of_the_first_expert(build: Callable[[int], Any]) -> None:
    whole = [build(seed) for seed in range(N)]
    net = controlnet(whole[0].unet)
    xl = build is tiny_sdxl_pipeline
    cls = StableDiffusionXLControlNetPipeline if xl else StableDiffusionControlNetPipeline
    pipeline = different(whole).pipeline(cls, controlnet=net)
    texts = [torch.randn(2, 16, 64 if xl else 32) for _ in range(N)]
    pooled = [torch.randn(2, 32) for _ in range(N)]
    sample, hint = torch.randn(2, 4, 8, 8), torch.rand(2, 3, 16, 16)

    def given(text: torch.Tensor, pool: torch.Tensor) -> dict[str, Any]:
        added = {"text_embeds": pool, "time_ids": torch.ones(2, 6)} if xl else None
        return {"encoder_hidden_states": text, "controlnet_cond": hint, "added_cond_kwargs": added}

    mine = pipeline.controlnet(sample, 5, **given(pack_text(texts), pack_text(pooled)))
    expected = net(sample, 5, **given(texts[0], pooled[0]))
    assert torch.equal(mine.mid_block_res_sample, expected.mid_block_res_sample)


def test_image_prompts_of_the_experts_are_used() -> None:
    whole = tiny_pipeline()
    load_image_prompts(whole.unet)
    embeddings = torch.randn(2, 1, IMAGE_WIDTH, generator=torch.Generator().manual_seed(5))  # without, with
    expected = draw(whole, ip_adapter_image_embeds=[embeddings], **SMALL)
    drawn = draw(copies(as_expert(whole)).pipeline(), ip_adapter_image_embeds=[embeddings], **SMALL)
    np.testing.assert_allclose(drawn, expected, atol=ATOL)
    assert np.abs(expected - draw(whole, ip_adapter_image_embeds=[-embeddings], **SMALL)).max() > 0.01


def test_a_controlnet_given_to_an_ensemble_stays_as_it_was() -> None:
    whole = tiny_pipeline()
    net = controlnet(whole.unet)
    pipeline = copies(as_expert(whole)).pipeline(StableDiffusionControlNetPipeline, controlnet=net)
    assert not net._forward_pre_hooks
    assert isinstance(pipeline.controlnet, ControlNetModel)
    assert pipeline.controlnet.conv_in.weight is net.conv_in.weight


def different(whole: Sequence[Any]) -> EnsembleDenoiser:
    return EnsembleDenoiser([as_expert(one, f"expert {i}") for i, one in enumerate(whole)])


def test_every_expert_reads_the_prompt_with_its_own_encoder() -> None:
    whole = [tiny_pipeline(seed) for seed in range(N)]
    ensemble = different(whole)
    pipeline = ensemble.pipeline()
    positive, negative = pipeline.encode_prompt(PROMPT, "cpu", 2, True, NEGATIVE)
    for packed, place in ((positive, 0), (negative, 1)):
        assert packed.shape == (2, N * 16, 32)
        for mine, one in zip(packed.chunk(N, dim=1), whole, strict=True):
            assert torch.equal(mine, one.encode_prompt(PROMPT, "cpu", 2, True, NEGATIVE)[place])
    # The same embeddings, given by hand.
    given = [one.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE) for one in whole]
    by_hand = draw(
        pipeline,
        prompt=None,
        negative_prompt=None,
        prompt_embeds=pack_text([one[0] for one in given]),
        negative_prompt_embeds=pack_text([one[1] for one in given]),
        **SMALL,
    )
    np.testing.assert_array_equal(by_hand, draw(pipeline, **SMALL))


def test_sdxl_packs_both_encoders_and_the_pooled_embedding() -> None:
    whole = [tiny_sdxl_pipeline(seed) for seed in range(N)]
    options = {"prompt": [PROMPT, "an owl"], "negative_prompt": [NEGATIVE, ""], "num_images_per_prompt": 2}
    packed = different(whole).pipeline().encode_prompt(device="cpu", **options)
    alone = [one.encode_prompt(device="cpu", **options) for one in whole]
    assert [tuple(tensor.shape) for tensor in packed] == [(4, N * 16, 64)] * 2 + [(4, N * 32)] * 2
    for place, tensor in enumerate(packed):
        for mine, one in zip(tensor.chunk(N, dim=1), alone, strict=True):
            assert torch.equal(mine, one[place])


@pytest.mark.parametrize("build", [tiny_pipeline, tiny_sdxl_pipeline])
def test_different_experts_draw_something_of_their_own(build: Callable[[int], Any]) -> None:
    whole = [build(seed) for seed in range(2)]
    together = draw(different(whole).pipeline(), **SMALL)
    assert np.isfinite(together).all()
    assert min(np.abs(together - draw(one, **SMALL)).max() for one in whole) > 0.01


def test_own_text_encoders_matter() -> None:
    first, second = tiny_pipeline(0), tiny_pipeline(1)
    other = tiny_pipeline(1, text_encoder=tiny_text_encoder(7))
    pictures = [draw(different([first, one]).pipeline(), **SMALL) for one in (second, other)]
    assert np.abs(pictures[0] - pictures[1]).max() > 1e-3


def test_skipped_clip_layers_go_through_each_encoders_own_norm() -> None:
    whole = [tiny_pipeline(seed) for seed in range(N)]
    (packed, _) = different(whole).pipeline().encode_prompt(PROMPT, "cpu", 1, False, clip_skip=1)
    ids = whole[0].tokenizer(PROMPT, padding="max_length", return_tensors="pt").input_ids
    for mine, one in zip(packed.chunk(N, dim=1), whole, strict=True):
        encoder = one.text_encoder
        states = encoder(ids, output_hidden_states=True).hidden_states[-2]
        assert torch.equal(mine, getattr(encoder, "text_model", encoder).final_layer_norm(states))


def test_a_callback_sees_every_step() -> None:
    steps = []

    def note(pipeline: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        steps.append((step, given["latents"].shape))
        return given

    draw(copies(as_expert(tiny_pipeline())).pipeline(), callback_on_step_end=note, **SMALL)
    assert steps == [(step, (1, 4, 8, 8)) for step in range(3)]


def test_the_pipeline_converts_and_reads_the_ensemble_as_one_denoiser() -> None:
    pipeline = copies(as_expert(tiny_pipeline())).pipeline()
    assert isinstance(pipeline, StableDiffusionPipeline)
    assert pipeline.unet.config.in_channels == 4
    assert draw(pipeline).shape == (1, 16, 16, 3)  # the size is read from the configuration
    pipeline.to(torch.bfloat16)
    assert pipeline.dtype == pipeline.unet.dtype == pipeline.text_encoder.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in pipeline.unet.parameters()} == {torch.bfloat16}
    assert np.isfinite(draw(pipeline)).all()
    pipeline.to("meta")
    assert pipeline.unet.device == pipeline.text_encoder.device == pipeline.device == torch.device("meta")


def test_another_scheduler_can_be_installed() -> None:
    from diffusers import EulerDiscreteScheduler

    whole = tiny_pipeline()
    euler = EulerDiscreteScheduler.from_config(whole.scheduler.config)
    drawn = draw(copies(as_expert(whole)).pipeline(scheduler=euler), **SMALL)
    whole.scheduler = EulerDiscreteScheduler.from_config(whole.scheduler.config)
    np.testing.assert_allclose(drawn, draw(whole, **SMALL), atol=ATOL)


def test_missing_and_unknown_parts_are_named() -> None:
    ensemble = copies(as_expert(tiny_pipeline()))
    with pytest.raises(ValueError, match=r"also needs 'controlnet': pass it as pipeline\(.*, controlnet=\.\.\.\)"):
        ensemble.pipeline(StableDiffusionControlNetPipeline)
    with pytest.raises(ValueError, match=r"StableDiffusionPipeline does not take the part 'contrlnet'. Its parts"):
        ensemble.pipeline(contrlnet=None)
    with pytest.raises(ValueError, match="does not take the part 'unet'"):
        ensemble.pipeline(unet=tiny_unet())
    with pytest.raises(ValueError, match="these experts are bare denoisers"):
        EnsembleDenoiser([tiny_unet()]).pipeline()


def test_a_plain_embedding_is_refused_with_the_remedy() -> None:
    whole = tiny_pipeline()
    embedding = whole.encode_prompt(PROMPT, "cpu", 1, False)[0]
    with pytest.raises(ValueError, match=r"does not divide by the 3 experts.*pack_text"):
        draw(
            copies(as_expert(whole)).pipeline(),
            prompt=None,
            negative_prompt=None,
            prompt_embeds=embedding,
            guidance_scale=1.0,
        )
