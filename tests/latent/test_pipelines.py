"""Stock pipelines as members: unchanged alone, in step with others, and as they were afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from diffusemble import Member, aggregate
from diffusemble.controls import (
    ImagePrompt,
    ImagePromptCondition,
    Interaction,
    Migc,
    Relation,
    interaction_condition,
    migc_condition,
    pipeline_with,
)
from gated_cases import opened
from stock import PAIRS, STEPS, Stock, generator, perturbed_attention, plain, quiet, small_pipeline
from tiny import randomised
from unet_inputs import IMAGE_WIDTH, randn

pytestmark = [
    pytest.mark.filterwarnings("ignore:The decode_latents method is deprecated:FutureWarning"),  # T2I-Adapter's own
]


def alone(stock: Stock) -> np.ndarray:
    pipeline, call = stock
    images: np.ndarray = pipeline(**call, generator=generator(0)).images
    return images


def state(pipeline: Any) -> dict[str, Any]:
    """What must not change: parts, configuration, attention processors, switches, hooks, attributes."""
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    modules = list(denoiser.modules())
    return {
        "attributes": {name: value for name, value in vars(pipeline).items() if not isinstance(value, torch.Tensor)},
        "scheduler": dict(vars(pipeline.scheduler)),
        "processors": [getattr(module, "processor", None) for module in modules],
        "switches": [getattr(module, "enabled", None) for module in modules],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules],
    }


@pytest.mark.parametrize("name", PAIRS)
def test_a_stock_pipeline_takes_part_and_stays_as_it_is(name: str) -> None:
    base, other = (make() for make in PAIRS[name])
    expected = alone(other)
    base_alone, before = alone(base), [state(stock[0]) for stock in (base, other)]

    one = aggregate([Member("one", *other)])
    np.testing.assert_array_equal(one.images, expected)

    drawn = aggregate([Member("base", *base), Member("other", *other, window=(0, 1))])
    per_step = 2 if "FLUX" in name else 1  # true guidance calls the transformer twice
    assert drawn.calls == {"base": STEPS, "other": 2 * per_step}
    assert np.isfinite(drawn.images).all()
    assert np.abs(drawn.images - base_alone).max() > 0.01
    assert list(drawn.outputs) == ["base"]

    assert [state(stock[0]) for stock in (base, other)] == before
    np.testing.assert_array_equal(alone(other), expected)


@pytest.mark.parametrize("name", ["FLUX", "SD3", "SDXL"])
def test_without_a_window_the_base_draws_what_it_draws_alone(name: str) -> None:
    base, other = (make() for make in PAIRS[name])
    drawn = aggregate([Member("base", *base), Member("other", *other, window=0.0)])
    np.testing.assert_array_equal(drawn.images, alone(base))
    assert drawn.calls == {"base": STEPS, "other": 0}


def test_img2img_and_inpainting_in_step_from_the_middle() -> None:
    (first, one), (second, two) = PAIRS["img2img"][1](), PAIRS["inpaint"][1]()
    more = {"strength": 0.6, "num_inference_steps": 5}
    members = [Member("a", first, {**one, **more}), Member("b", second, {**two, **more}, window=1.0)]
    assert aggregate(members).calls == {"a": 3, "b": 3}
    with pytest.raises(
        ValueError, match=r"at step 0 the base 'a' is at timestep 401, member 'b' at 801.*same strength"
    ):
        aggregate([members[0], Member("b", second, {**two, "num_inference_steps": 5}, window=1.0)])


def test_one_pipeline_may_stand_for_several_members() -> None:
    pipeline, call = plain()
    twin = small_pipeline(0)
    owl = {**call, "prompt": "an owl", "guidance_scale": 7.0}
    shared = aggregate([Member("a", pipeline, call), Member("b", pipeline, owl, window=1.0)])
    apart = aggregate([Member("a", pipeline, call), Member("b", twin, owl, window=1.0)])
    np.testing.assert_array_equal(shared.images, apart.images)
    assert shared.calls == apart.calls == {"a": STEPS, "b": STEPS}


@pytest.mark.parametrize("swapped", [False, True])
def test_members_of_one_denoiser_do_not_meet_each_others_attention(swapped: bool) -> None:
    pag, guided = perturbed_attention()
    sharing, apart = quiet(type(plain()[0]).from_pipe(small_pipeline(5), unet=pag.unet)), small_pipeline(5)
    assert sharing.unet is pag.unet is not apart.unet

    def draw(other: Any) -> Any:
        ends = [("pag", pag, guided), ("plain", other, plain()[1])]
        (base, *first), (name, *second) = reversed(ends) if swapped else ends
        return aggregate([Member(base, *first), Member(name, *second, window=(0, 1))])

    np.testing.assert_array_equal(draw(sharing).images, draw(apart).images)


def test_callbacks_belong_to_their_member() -> None:
    seen: dict[str, list[int]] = {"a": [], "b": []}

    def note(name: str) -> Any:
        def callback(pipeline: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
            seen[name].append(step)
            return given

        return callback

    pipeline, call = plain()
    members = [
        Member(name, pipeline, {**call, "callback_on_step_end": note(name)}, window=window)
        for name, window in (("a", None), ("b", (0, 1)))
    ]
    aggregate(members)
    assert seen == {"a": [0, 1, 2], "b": [0]}  # b stops in its last step
    seen["a"], seen["b"] = [], []
    aggregate([members[0], Member("b", pipeline, members[1].call, window=(0, 1), finish=True)])
    assert seen == {"a": [0, 1, 2], "b": [0, 1, 2]}


def test_progress_bars_are_the_bases(capsys: pytest.CaptureFixture[str]) -> None:
    whole = [small_pipeline(seed) for seed in range(2)]
    for pipeline in whole:
        pipeline.set_progress_bar_config(disable=False)
    aggregate([Member(name, pipeline, plain()[1]) for name, pipeline in zip("ab", whole, strict=True)])
    assert capsys.readouterr().err.count(" 0/3 ") == 1


def test_three_controls_of_one_unet_draw_what_they_draw_on_three() -> None:
    pipeline, call = plain()
    torch.manual_seed(0)
    controls = [
        opened(Interaction, pipeline.unet),
        randomised(Migc.from_unet(pipeline.unet, ["down_blocks.0"], slots=8, hidden=9, heads=4, reduction=4)),
        ImagePrompt.from_unet(pipeline.unet, IMAGE_WIDTH),
    ]
    fox, owl = ("a fox", (0.0, 0.1, 0.5, 0.9)), ("an owl", (0.4, 0.5, 1.0, 1.0))
    conditions = {
        "interaction": interaction_condition(pipeline, [Relation(*fox, "chases", *owl)]),
        "migc": migc_condition(pipeline, [fox, owl]),
        "image_prompt": ImagePromptCondition(randn(1, IMAGE_WIDTH)),
    }

    def draw(unets: Sequence[Any]) -> Any:
        members = [
            Member(
                control.key,
                quiet(pipeline_with(type(pipeline).from_pipe(pipeline, unet=unet), [control])),
                {**call, "cross_attention_kwargs": {control.key: conditions[control.key]}},
                window=None if control.key == "interaction" else (0, 1),
            )
            for control, unet in zip(controls, unets, strict=True)
        ]
        return aggregate(members)

    shared, apart = draw([pipeline.unet] * 3), draw([small_pipeline(0).unet for _ in range(3)])
    np.testing.assert_array_equal(shared.images, apart.images)
    assert shared.calls == {"interaction": 3, "migc": 2, "image_prompt": 2}
    assert not any(hasattr(module, "fuser") for module in pipeline.unet.modules())
