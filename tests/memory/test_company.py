"""Pipelines that draw in step within a budget: the same latents, and no more weights at once than the plan says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusemble import EnsembleDenoiser
from diffusemble.controls import Interaction
from diffusemble.controls.base import ControlledUNet
from diffusemble.controls.image_prompt import ImagePrompt, ImagePromptCondition
from diffusemble.controls.instances import MigcCondition, migc_condition
from diffusemble.controls.migc import Migc
from diffusemble.controls.phrases import encode_phrases
from diffusemble.controls.pipelines import pipeline_with
from diffusemble.latent.aggregate import Member, aggregate
from diffusemble.memory.bundle import bytes_of, weights_of
from diffusemble.memory.company import Company
from diffusemble.memory.controlled import measure_controlled
from diffusemble.memory.live import LiveBytes
from diffusemble.memory.networks import networks_of
from diffusemble.memory.place import Placement
from gated_cases import boxes, opened, relations
from memory_cases import a_plan
from stock import small_pipeline, small_unet
from tiny import WIDTH, as_expert, randomised, tiny_vae

IMAGE = 12


def controls_of(unet: Any) -> Mapping[str, tuple[Any, Any]]:
    """A control of every way to act in a U-Net, and a condition for it."""
    torch.manual_seed(3)
    migc = Migc.from_unet(unet, ("up_blocks",), slots=5, hidden=16, heads=4, reduction=4)
    things = MigcCondition(torch.randn(2, 77, WIDTH), torch.randn(2, WIDTH), boxes(2), 16, 16, until=1.0)
    return {
        "interaction": (opened(Interaction, unet), relations(2)),
        "migc": (randomised(migc), things),
        "image_prompt": (randomised(ImagePrompt.from_unet(unet, IMAGE)), ImagePromptCondition(torch.ones(1, IMAGE))),
    }


@pytest.fixture(scope="module")
def members() -> list[Member]:
    """Three controls on one U-Net, the U-Net itself, another model with a VAE of its own, and an ensemble."""
    base = small_pipeline(0)
    told = {"prompt": "a fox", "output_type": "latent"}
    made = []
    for name, (control, condition) in controls_of(base.unet).items():
        call = {**told, "cross_attention_kwargs": {name: condition, "guided": True}}
        window = (0, 0) if made else None
        made.append(Member(name, pipeline_with(base, [control]), call, window=window))
    other = small_pipeline(1, vae=tiny_vae(1))
    readers = (base.text_encoder, other.text_encoder)
    experts = [small_pipeline(seed, vae=base.vae, text_encoder=one) for seed, one in enumerate(readers, start=2)]
    both = EnsembleDenoiser([as_expert(one, f"expert {number}") for number, one in enumerate(experts)]).eval()
    pipelines = {"plain": base, "other": other, "both": both.pipeline()}
    return [*made, *(Member(name, pipeline, told, window=(0, 0)) for name, pipeline in pipelines.items())]


def company_of(members: list[Member]) -> tuple[Company, list[Any]]:
    pipelines = [member.pipeline for member in members]
    for pipeline in pipelines:
        pipeline.set_progress_bar_config(disable=True)
    return Company(pipelines), pipelines


def latents(members: list[Member]) -> Tensor:
    return aggregate(members, steps=2).latents


@pytest.fixture(scope="module")
def expected(members: list[Member]) -> Tensor:
    """With everything in memory."""
    company_of(members)
    return latents(members)


@pytest.mark.parametrize(("resident", "parts"), [(3, "stay"), (0, "layers")])
def test_members_draw_the_same_bits(members: list[Member], expected: Tensor, resident: int, parts: str) -> None:
    company, pipelines = company_of(members)
    plan = a_plan(company, pipelines, resident=resident, parts=parts)
    seen: dict[str, int] = {}
    with Placement(company, plan, "cpu", pipelines) as placed:
        hooks = [
            one.pipeline.unet.register_forward_hook(
                lambda *_, name=one.name: seen.update({name: placed.residence.bytes})
            )
            for one in members
            if one.name != "plain"  # that U-Net runs inside of others
        ]
        assert torch.equal(latents(members), expected)
        for hook in hooks:
            hook.remove()
        assert 0 < placed.residence.peak <= plan.weights
    assert placed.residence.bytes == 0
    if resident == 0:  # whoever computes is there with the U-Net that four share, and nobody else
        assert torch.equal(latents(members), expected)
        base = bytes_of(weights_of([members[0].pipeline.unet.unet]))
        own = {one.name: bytes_of(weights_of(one.pipeline.unet.controls)) for one in members[:3]}
        firsts = {one.name: bytes_of([next(one.pipeline.unet.parameters())]) for one in members[4:]}
        own |= {one.name: bytes_of(weights_of([one.pipeline.unet])) - firsts[one.name] for one in members[4:]}
        assert seen == {name: base + sum(firsts.values()) + size for name, size in own.items()}


def test_what_members_share_is_counted_once(members: list[Member]) -> None:
    company, pipelines = company_of(members)
    networks = networks_of(company, pipelines)
    assert networks.vaes == (pipelines[0].vae, pipelines[4].vae)
    assert networks.encoders == (pipelines[0].text_encoder, pipelines[4].text_encoder)
    everything = weights_of([company, *networks.vaes, *networks.encoders])
    assert bytes_of(everything) <= a_plan(company, pipelines).weights < 1.05 * bytes_of(everything)
    away = a_plan(company, pipelines, resident=0, parts="visit")
    shared = bytes_of(weights_of([members[0].pipeline.unet.unet]))
    readers = networks_of(Company([pipelines[5], pipelines[0]]), [pipelines[5], pipelines[0]]).encoders
    assert readers == networks.encoders  # one by one also of an ensemble that comes first
    assert away.encode.weights < shared + 1.05 * max(bytes_of(weights_of([one])) for one in networks.encoders) + 2000


def test_what_controls_need_is_reckoned() -> None:
    unet = small_unet(0)
    controls = controls_of(unet)
    order = ("interaction", "image_prompt", "migc")
    controlled = ControlledUNet(unet, [controls[name][0] for name in order])
    reckoned = measure_controlled(controlled, (8, 8), pictures=2, rows=4, things=2)
    sample, text = torch.randn(2, 4, 8, 8).repeat(2, 1, 1, 1), torch.randn(4, 77, WIDTH)
    told = {name: controls[name][1] for name in order}
    with torch.no_grad(), LiveBytes() as live:
        controlled(sample, 999, text, cross_attention_kwargs=told)
    assert 0.8 * live.peak < reckoned < 1.3 * live.peak


@pytest.mark.parametrize(
    "read",
    [
        lambda pipe: encode_phrases(pipe, ["a fox"]),
        lambda pipe: migc_condition(pipe, [("a fox", (0.0, 0.0, 1.0, 1.0))]),
    ],
)
def test_phrases_are_read_where_the_pipeline_computes(read: Callable[[Any], Any]) -> None:
    """The encoder rests elsewhere until it is called."""
    pipe = small_pipeline(0)
    told = SimpleNamespace(
        tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder, device=torch.device("meta"), unet=pipe.unet
    )
    told.vae_scale_factor = 2
    pipe.text_encoder.register_forward_pre_hook(_device_of_ids, with_kwargs=True)
    with pytest.raises(KeyError, match="meta"):
        read(told)


def _device_of_ids(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise KeyError((*args, kwargs.get("input_ids"))[0].device.type)
