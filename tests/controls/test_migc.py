"""MIGC in a whole U-Net: the laws of a control, its conditions, and what is refused."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from diffusemble.controls.base import Call, ControlledUNet
from diffusemble.controls.image_prompt import ImagePrompt, ImagePromptCondition
from diffusemble.controls.migc import Migc, MigcCondition, migc_condition
from diffusemble.controls.migc_processors import place
from diffusemble.controls.pipelines import pipeline_with
from tiny import LENGTH, WIDTH, randomised, tiny_pipeline, tiny_scheduler, tiny_unet

EARLY, LATE = 981, 301  # of 1000 time steps
BOXES = ((0.0, 0.1, 0.5, 0.8), (0.4, 0.3, 1.0, 0.9), (0.2, 0.5, 0.7, 1.0))


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return tiny_unet()


@pytest.fixture(scope="module")
def control(unet) -> Migc:
    torch.manual_seed(2)
    return randomised(Migc.from_unet(unet, slots=8, hidden=9, heads=4, reduction=4))


def told(n: int = 3, seed: int = 0, **options: Any) -> MigcCondition:
    generator = torch.Generator().manual_seed(seed)
    text, pooled = (torch.randn(n, *shape, generator=generator) for shape in ((5, WIDTH), (WIDTH,)))
    return MigcCondition(text, pooled, torch.tensor(BOXES[:n]).reshape(n, 4), 64, 64, **options)


def inputs(pictures: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    sample = torch.randn(pictures, 4, 8, 8, generator=generator)
    return torch.cat((sample, sample)), torch.randn(2 * pictures, 7, WIDTH, generator=generator)


@torch.no_grad()
def run(
    model: Any, sample: torch.Tensor, text: torch.Tensor, condition: Any = None, time: int = EARLY, **more: Any
) -> torch.Tensor:
    given = {key: value for key, value in {"migc": condition, **more}.items() if value is not None}
    return model(sample, time, text, cross_attention_kwargs=given or None).sample


@pytest.fixture(scope="module")
def model(unet, control) -> ControlledUNet:
    return ControlledUNet(unet, [control])


def close(actual: torch.Tensor, expected: torch.Tensor, share: float = 1e-5) -> None:
    assert (actual - expected).abs().max() <= share * expected.abs().max()


def test_it_changes_the_conditional_half_only(unet, model):
    sample, text = inputs()
    plain, output = run(unet, sample, text), run(model, sample, text, told())
    close(output[0], plain[0])
    assert not torch.allclose(output[1], plain[1], atol=1e-3)


def test_afterwards_the_unet_is_the_plain_one(unet, model):
    sample, text = inputs()
    before, processors, keys = run(unet, sample, text), dict(unet.attn_processors), list(unet.state_dict())
    run(model, sample, text, told(fuse_until=1.0))
    assert torch.equal(run(unet, sample, text), before)
    with pytest.raises(RuntimeError):
        run(model, sample, text[:, :, :-1], replace(told(), text=told().text[:, :, :-1]))
    assert torch.equal(run(unet, sample, text), before)
    assert unet.attn_processors == processors
    assert list(unet.state_dict()) == keys


@pytest.mark.parametrize("condition", [None, told(0), [told(0)], told(until=0.0)])
def test_without_instances_or_share_it_is_the_plain_unet(unet, model, condition):
    sample, text = inputs()
    assert torch.equal(run(model, sample, text, condition), run(unet, sample, text))


def test_it_works_in_its_share_of_the_schedule(unet, model):
    sample, text = inputs()
    assert torch.equal(run(model, sample, text, told(until=0.5), LATE), run(unet, sample, text, time=LATE))
    assert not torch.equal(run(model, sample, text, told(until=1.0), LATE), run(unet, sample, text, time=LATE))
    fused = run(model, sample, text, told(until=0.5, fuse_until=1.0), LATE)
    assert not torch.equal(fused, run(unet, sample, text, time=LATE))
    both = run(model, sample, text, told(until=0.5, fuse_until=1.0))
    assert not torch.equal(both, run(model, sample, text, told(until=0.5)))


@pytest.mark.parametrize(("steps", "last"), [(50, 20), (20, 8), (8, 4)])
def test_the_share_of_the_published_loop(unet, model, steps, last):
    """Step i of T is in, up to and with ``last``, when ``until`` is (last + 1) / T."""
    scheduler = tiny_scheduler()
    scheduler.set_timesteps(steps)
    sample, text = inputs()
    for step in (last, last + 1):
        time = int(scheduler.timesteps[step])
        plain = run(unet, sample, text, time=time)
        assert torch.equal(run(model, sample, text, told(until=(last + 1) / steps), time), plain) == (step > last)


def test_other_ways_to_compute_attention(unet, model, control):
    sample, text = inputs()
    picture = ImagePrompt.from_unet(unet, 12)
    sliced = deepcopy(unet)
    sliced.set_attention_slice(1)
    given = {"condition": told(fuse_until=1.0), "image_prompt": ImagePromptCondition(torch.ones(1, 12))}
    for controls, conditions in (([control], {"condition": told()}), ([picture, control], given)):
        expected = run(ControlledUNet(unet, controls), sample, text, **conditions)
        close(run(ControlledUNet(sliced, controls), sample, text, **conditions), expected)


def test_instances_may_come_in_any_order(model):
    sample, text = inputs()
    first, order = told(slots=torch.tensor([4, 0, 2])), torch.tensor([2, 0, 1])
    other = MigcCondition(first.text[order], first.pooled[order], first.boxes[order], 64, 64, slots=first.slots[order])
    close(run(model, sample, text, other), run(model, sample, text, first))


def test_slots_may_differ_by_layer(model, control):
    sample, text = inputs()
    same = torch.tensor([[4, 0, 2]] * len(control.layers))
    assert torch.equal(run(model, sample, text, told(slots=same)), run(model, sample, text, told(slots=same[0])))
    same[-1] = torch.tensor([0, 1, 2])
    assert not torch.equal(run(model, sample, text, told(slots=same)), run(model, sample, text, told(slots=same[0])))


def test_every_picture_has_its_own_instances(model):
    sample, text = inputs(3)
    conditions = [told(2, seed=1), told(3, seed=2), told(0)]
    together = run(model, sample, text, conditions)
    for row, condition in enumerate(conditions):
        close(together[row::3], run(model, sample[row::3], text[row::3], condition))


def test_one_condition_for_several_pictures_of_each_prompt(model):
    sample, text = inputs(4)
    conditions = [told(2, seed=1), told(3, seed=2)]
    together = run(model, sample, text, conditions)
    close(together[2:4], run(model, sample, text, conditions[1])[2:4])
    alone = run(model, sample[4:], text[4:], conditions, guided=False)
    close(alone, together[4:])


def test_a_stock_pipeline_draws_several_pictures(control):
    pipe = tiny_pipeline()
    drawing = pipeline_with(pipe, [control])
    condition = migc_condition(drawing, [("a cat", BOXES[0]), ("a dog", BOXES[1])], 16, 16)
    assert (condition.height, condition.text.shape) == (16, (2, LENGTH, WIDTH))
    options = {"num_inference_steps": 2, "output_type": "latent"}
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    both = drawing(
        "two", num_images_per_prompt=2, generator=seeds, cross_attention_kwargs={"migc": condition}, **options
    ).images
    alone = drawing("two", generator=torch.manual_seed(2), cross_attention_kwargs={"migc": condition}, **options).images
    close(both[1:], alone, 1e-4)
    plain = pipe("two", generator=torch.manual_seed(2), **options).images
    assert not torch.allclose(alone, plain, atol=1e-3)


def test_gradients_reach_every_weight(unet, model, control):
    sample, text = inputs()
    sample = sample.repeat(1, 1, 2, 2)  # the middle block then has four places, between which layout attention chooses
    output = model(sample, EARLY, text, cross_attention_kwargs={"migc": told()}).sample
    output.square().mean().backward()
    without = [name for name, weight in control.named_parameters() if weight.grad is None or not weight.grad.any()]
    control.zero_grad(set_to_none=True)
    unet.zero_grad(set_to_none=True)
    assert without == []


def test_recomputed_activations_are_refused(control):
    """They are recomputed when the control is no longer there."""
    unet = tiny_unet().train()
    unet.enable_gradient_checkpointing()
    sample, text = inputs()
    model = ControlledUNet(unet, [control])
    run(model, sample, text, told())
    with pytest.raises(ValueError, match="disable_gradient_checkpointing"):
        model(sample, EARLY, text, cross_attention_kwargs={"migc": told()})


def test_masks_are_reckoned_once(model):
    sample, text = inputs()
    condition = told()
    run(model, sample, text, condition)
    before = dict(condition._masks)
    run(model, sample, text, condition)
    assert len(before) == 2  # grids of the middle and of the lowest decoder level
    assert all(condition._masks[key] is masks for key, masks in before.items())


def test_new_modules_begin_with_the_phrases_in_their_boxes(unet):
    """At the start an instance's place shows what its phrase alone gives, and the rest what the prompt gives."""
    layer = Migc.from_unet(unet, slots=8, hidden=9, heads=4, reduction=4).layers[0]
    placed = place([told(2)], Call(torch.zeros(1, 4, 8, 8), 0, torch.zeros(1, 7, WIDTH), guided=False))
    masks, channels = placed.masks(64), layer.sizes.channels
    shared, own = torch.full((1, 64, channels), -1.0), torch.full((2, 64, channels), 1.0)
    with torch.no_grad():
        output = layer(torch.randn(1, 64, channels), shared, own, placed.instances, masks, placed.together(64))[0, :, 0]
    inside, outside = masks.instances[..., 0].amax(dim=0) == 1, masks.rest[0, :, 0] == 1
    assert output[inside].min() > 0.85
    assert output[outside].max() < -0.85


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("control_too", [True, False])
def test_half_precision(unet, control, dtype, control_too):
    sample, text = inputs()
    expected = run(ControlledUNet(unet, [control]), sample, text, told(fuse_until=1.0))
    half = deepcopy(control).to(dtype) if control_too else control
    model = ControlledUNet(deepcopy(unet).to(dtype), [half])
    output = run(model, sample.to(dtype), text.to(dtype), told(fuse_until=1.0))
    assert output.dtype == dtype
    close(output.float(), expected, 0.05)


def test_mixed_precision(unet, control):
    sample, text = inputs()
    torch.manual_seed(0)
    model = ControlledUNet(unet, [ImagePrompt.from_unet(unet, 12), control])
    given = {"condition": told(fuse_until=1.0), "image_prompt": ImagePromptCondition(torch.ones(1, 12))}
    expected = run(model, sample, text, **given)
    with torch.autocast("cpu", torch.bfloat16):
        close(run(model, sample, text, **given).float(), expected, 0.05)
