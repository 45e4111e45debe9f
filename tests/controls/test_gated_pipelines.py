"""Gated controls in stock pipelines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from diffusemble import zoo
from diffusemble.controls import ControlledUNet, Gligen, Interaction, Relation, interaction_condition, pipeline_with
from diffusemble.controls.base import Call
from diffusemble.controls.gated_condition import at_work
from gated_cases import opened
from tiny import WIDTH, tiny_pipeline

RELATIONS = [
    Relation("a man", (0.0, 0.1, 0.5, 0.9), "feeds", "a cat", (0.4, 0.5, 1.0, 1.0)),
    Relation("a cat", (0.4, 0.5, 1.0, 1.0), "sits on", "a box", (0.3, 0.8, 1.0, 1.0)),
]


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def controlled(pipe: StableDiffusionPipeline) -> Any:
    return pipeline_with(pipe, [opened(Interaction, pipe.unet)])


def draw(pipe: Any, *prompts: str, seeds: int = 1, **settings: Any) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    size = {"num_inference_steps": 2, "output_type": "latent"}
    return pipe(list(prompts or ["a man feeds a cat"]), generator=generators, **{**size, **settings}).images


def asked(pipe: Any, **settings: float) -> dict[str, Any]:
    return {"interaction": interaction_condition(pipe, RELATIONS, **settings)}


def test_both_pipelines_share_all_but_the_scheduler(pipe: StableDiffusionPipeline, controlled: Any):
    assert type(controlled) is type(pipe)
    for name, part in pipe.components.items():
        shared = controlled.unet.unet if name == "unet" else getattr(controlled, name)
        assert (shared is part) == (name != "scheduler" or part is None), name
    assert controlled.scheduler.config == pipe.scheduler.config
    before = draw(pipe)
    assert not torch.equal(draw(controlled, cross_attention_kwargs=asked(pipe)), before)
    assert torch.equal(draw(controlled), before)
    assert torch.equal(draw(pipe), before)


def test_more_controls_join(controlled: Any):
    more = pipeline_with(controlled, [opened(Gligen, controlled.unet.unet)])
    assert [control.key for control in more.unet.controls] == ["interaction", "gligen"]
    with pytest.raises(ValueError, match="need different keys; got interaction, interaction"):
        pipeline_with(controlled, [opened(Interaction, controlled.unet.unet)])


def test_a_picture_does_not_depend_on_its_batch(pipe: StableDiffusionPipeline, controlled: Any):
    kwargs = asked(pipe)
    first = draw(controlled, cross_attention_kwargs=kwargs)
    for settings in ({"num_images_per_prompt": 2}, {"prompts": ("a man feeds a cat", "a dog")}):
        many = draw(controlled, *settings.pop("prompts", ()), seeds=2, cross_attention_kwargs=kwargs, **settings)
        torch.testing.assert_close(many[:1], first, rtol=1e-4, atol=1e-4)


def test_without_guidance(pipe: StableDiffusionPipeline, controlled: Any):
    kwargs = asked(pipe)
    result = draw(controlled, guidance_scale=1.0, cross_attention_kwargs={**kwargs, "guided": False})
    assert not torch.equal(result, draw(pipe, guidance_scale=1.0))
    with pytest.raises(ValueError, match=r'got 1 rows .*cross_attention_kwargs=\{"guided": False\}'):
        draw(controlled, guidance_scale=1.0, cross_attention_kwargs=kwargs)


def test_tokens_are_computed_once_for_a_picture(pipe: StableDiffusionPipeline):
    control, calls = opened(Interaction, pipe.unet), []
    control.position_net.register_forward_hook(lambda *_: calls.append(1))
    draw(pipeline_with(pipe, [control]), num_inference_steps=5, cross_attention_kwargs=asked(pipe))
    assert len(calls) == 1


def test_other_pipelines(pipe: StableDiffusionPipeline):
    torch.manual_seed(0)
    parts = {**pipe.components, "requires_safety_checker": False}
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8))
    torch.nn.init.normal_(net.controlnet_mid_block.weight)
    picture = torch.rand(1, 3, 16, 16)
    for other, given in (
        (StableDiffusionImg2ImgPipeline(**parts), {"image": picture, "num_inference_steps": 4}),
        (StableDiffusionControlNetPipeline(**parts, controlnet=net), {"image": picture}),
    ):
        other.set_progress_bar_config(disable=True)
        made = pipeline_with(other, [opened(Interaction, pipe.unet)])
        result = draw(made, cross_attention_kwargs=asked(pipe), **given)
        assert not torch.equal(result, draw(other, **given))
        assert torch.equal(draw(made, **given), draw(other, **given))


def test_a_pipeline_without_the_way_in_is_refused(pipe: StableDiffusionPipeline):
    class Other:
        unet = None

        def __call__(self) -> None: ...

    with pytest.raises(ValueError, match=r"Other has no unet. Use a Stable Diffusion 1.x pipeline"):
        pipeline_with(Other(), [])
    Other.unet = pipe.unet
    with pytest.raises(ValueError, match="Other has no such argument"):
        pipeline_with(Other(), [])


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_a_share_of_the_schedule_is_that_of_scheduled_sampling(spacing: str, steps: int):
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(steps)
    latents = torch.zeros(1, 4, 2, 2)
    progress = [Call(latents, timestep, latents, False).progress for timestep in scheduler.timesteps]
    for share in range(steps + 1):
        assert [at_work(done, share / steps) for done in progress] == [step < share for step in range(steps)]


def test_after_its_share_a_control_is_off(pipe: StableDiffusionPipeline, controlled: Any):
    on = [kwargs["interaction"] for kwargs in (asked(pipe), asked(pipe, until=0.5), asked(pipe, until=0.0))]
    early, middle, never = (draw(controlled, cross_attention_kwargs={"interaction": one}) for one in on)
    assert torch.equal(never, draw(pipe))
    assert not torch.equal(middle, never)
    assert not torch.equal(middle, early)


def test_the_encoder_of_the_zoo_reads_phrases():
    folder = zoo.folder("people")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    condition = interaction_condition(tiny_pipeline(text_encoder=encoder, tokenizer=tokenizer), RELATIONS)
    assert condition.subjects.shape == (2, encoder.config.hidden_size)
    assert not torch.equal(condition.subjects[0], condition.subjects[1])
    torch.testing.assert_close(condition.objects[0], condition.subjects[1])  # both a cat


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"action": " "}, r"Phrase 1 of 3 is empty"),
        ({"subject_box": (0, 0, 2, 1)}, r"that of the subject 'a man' of relation 0 is .*2.0"),
        ({"object_box": (0.5, 0, 0.5, 1)}, r"that of the object 'a cat' of relation 0 is .*x1 >= x2"),
    ],
)
def test_relations_that_are_none(pipe: StableDiffusionPipeline, changed: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        interaction_condition(pipe, [Relation(**{**vars(RELATIONS[0]), **changed})])
    with pytest.raises(ValueError, match="There are no relations"):
        interaction_condition(pipe, [])


def test_a_controlled_network_answers_for_its_network(pipe: StableDiffusionPipeline):
    unet = ControlledUNet(pipe.unet, [])
    assert (unet.config, unet.dtype, unet.device) == (pipe.unet.config, torch.float32, torch.device("cpu"))
    assert unet.attn_processors == pipe.unet.attn_processors
    assert unet.config.cross_attention_dim == WIDTH
    with pytest.raises(AttributeError, match="nothing_like_it"):
        unet.nothing_like_it
