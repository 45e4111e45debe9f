"""Laws of the loop: what comes out of equal members, windows, order, batches, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor, nn

from diffusemble import Member, aggregate
from diffusemble.latent.predict import PredictPipeline
from stock import STEPS, generator, plain, small_pipeline
from tiny import tiny_scheduler
from toys import SHAPE, Recorded, Toy, toy
from unet_inputs import randn

SCHEDULERS = {
    "DDIM": tiny_scheduler,
    "DDIM, velocity": lambda: tiny_scheduler(prediction_type="v_prediction"),
    "DDPM": lambda: DDPMScheduler.from_config(tiny_scheduler().config),
    "DPM-Solver++": lambda: DPMSolverMultistepScheduler.from_config(tiny_scheduler().config),
    "Euler": lambda: EulerDiscreteScheduler.from_config(tiny_scheduler().config),
    "Euler ancestral": lambda: EulerAncestralDiscreteScheduler.from_config(tiny_scheduler().config),
    "flow matching": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
}


@pytest.mark.parametrize("combine", ["amdm", "linear", "magicfusion"])
def test_two_equal_members_with_one_noise_draw_what_either_draws(combine: str) -> None:
    pipeline, call = plain()
    options = {"deviation": False} if combine == "amdm" else {}
    members = [Member("a", pipeline, call), Member("b", small_pipeline(0), call, window=1.0)]
    together = aggregate(members, combine, options, shared_noise=True)
    alone = pipeline(**call, generator=generator(0)).images
    torch.testing.assert_close(torch.tensor(together.images), torch.tensor(alone), rtol=0, atol=1e-4)


@pytest.mark.parametrize("combine", ["amdm", "linear", "superdiff-or"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_with_every_scheduler_two_equal_members_draw_what_either_draws(name: str, combine: str) -> None:
    # Drawn back to its own deterministic step, a member of a stochastic or multistep scheduler is elsewhere.
    options = {"deviation": False} if combine == "amdm" else {}
    members = [toy("a", 1, SCHEDULERS[name]()), toy("b", 1, SCHEDULERS[name](), window=1.0)]
    alone = PredictPipeline(Toy(1), SCHEDULERS[name]())(shape=SHAPE, num_inference_steps=6, generator=generator(3))
    drawn = aggregate(members, combine, options, steps=6, seed=3, shared_noise=True)
    torch.testing.assert_close(drawn.images, alone.images, rtol=1e-4, atol=1e-4)
    assert torch.equal(drawn.latents, drawn.images)


def test_the_order_of_auxiliary_members_does_not_matter() -> None:
    members = [toy("a", 1), toy("b", 2, window=(0, 3)), toy("c", 3, window=0.3, weight=0.4, length=0.2)]
    one, other = (aggregate(order, steps=8) for order in (members, [members[0], members[2], members[1]]))
    torch.testing.assert_close(one.images, other.images, rtol=1e-4, atol=1e-5)
    assert one.calls == other.calls == {"a": 8, "b": 4, "c": 2}


def test_pictures_of_a_batch_do_not_depend_on_each_other() -> None:
    def members(prompts: list[str]) -> list[Member]:
        made = []
        for seed, name in enumerate("ab"):
            pipeline, call = small_pipeline(seed), plain()[1]
            made.append(Member(name, pipeline, {**call, "prompt": prompts, "output_type": "pt"}))
        return made

    both = aggregate(members(["a fox", "an owl"]), seed=[4, 5])
    alone = [aggregate(members([prompt]), seed=[seed]).images for prompt, seed in (("a fox", 4), ("an owl", 5))]
    torch.testing.assert_close(both.images, torch.cat(alone), rtol=0, atol=1e-4)
    assert both.latents.shape == (2, 4, 8, 8)


def test_a_seed_gives_every_member_noise_of_its_own_unless_it_is_shared() -> None:
    def first_noise(**options: Any) -> list[Tensor]:
        combine = Recorded(options.pop("moment", "latents"))
        names = options.pop("names", "abc")
        aggregate([toy(name, 1, window=None if name == "a" else 1.0) for name in names], combine, steps=2, **options)
        steps = sorted(combine.steps[0], key=lambda step: names[step.member])
        return [step.sample for step in steps]

    base, *others = first_noise(seed=7)
    assert torch.equal(base, torch.randn(SHAPE, generator=generator(7)))
    assert not any(torch.equal(base, other) for other in others)
    assert not torch.equal(*others)
    # Noise belongs to a name, not to a place.
    assert all(torch.equal(*pair) for pair in zip(others, first_noise(seed=7, names="acb")[1:], strict=True))
    for options in ({"shared_noise": True}, {"moment": "prediction"}):
        base, *others = first_noise(seed=7, **options)
        assert all(torch.equal(base, other) for other in others)


def test_a_member_keeps_its_own_noise_and_number_of_steps() -> None:
    noise, drawn = randn(*SHAPE, seed=9), Recorded()
    pipeline = PredictPipeline(Toy(1), tiny_scheduler())
    call = {"latents": noise, "num_inference_steps": 3}
    aggregate([Member("a", pipeline, call), Member("b", pipeline, call, window=1.0)], drawn, steps=5)
    assert [step.sample is not None and torch.equal(step.sample, noise) for step in drawn.steps[0]] == [True, True]
    assert len(drawn.steps) == 3


@pytest.mark.parametrize("window", [(0, 0), (2, 3), 0.5, (4, 40), 1.0])
def test_a_member_takes_part_in_its_window_and_is_then_gone(window: Any) -> None:
    combine, steps = Recorded(), 6
    members = [toy("a", 1), toy("b", 2, window=window)]
    taking_part = members[1].steps(steps)
    drawn = aggregate(members, combine, steps=steps)
    assert drawn.calls == {"a": steps, "b": taking_part.stop}
    assert [member.pipeline.predict.calls for member in members] == [steps, taking_part.stop]
    assert [found[0].index for found in combine.steps] == list(taking_part)
    for found in combine.steps:
        assert [step.member for step in found] == [0, 1]
        for step in found:
            assert (step.previous is None) == (step.index == 0)
            if step.previous is not None:
                assert step.previous.index == step.index - 1
                assert step.previous.member == step.member
                assert step.previous.previous is None
                torch.testing.assert_close(step.sample, step.previous.stepped, rtol=0, atol=0)


def test_hooks_of_ones_own_count_the_same_calls() -> None:
    counted = {"a": 0, "b": 0}

    def count(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            counted[name] += 1

        return hook

    whole = {name: small_pipeline(seed) for seed, name in enumerate("ab")}
    handles = [whole[name].unet.register_forward_hook(count(name)) for name in whole]
    members = [Member(name, whole[name], plain()[1], window=None if name == "a" else (0, 0)) for name in whole]
    assert aggregate(members).calls == counted == {"a": STEPS, "b": 1}
    for handle in handles:
        handle.remove()


def test_a_member_that_finishes_draws_its_own_picture() -> None:
    members = [toy("a", 1), toy("b", 2, window=(0, 1)), toy("c", 3, window=0.0, finish=True)]
    shorter = aggregate(members, steps=5)
    longer = aggregate([*members[:1], toy("b", 2, window=(0, 1), finish=True), members[2]], steps=5)
    assert torch.equal(shorter.images, longer.images)
    assert list(longer.outputs) == ["a", "b", "c"]
    assert longer.calls == {"a": 5, "b": 5, "c": 5}
    assert not torch.equal(longer.outputs["b"].images, longer.images)
    own = aggregate([toy("base", 4), toy("c", 3, window=0.0, finish=True)], "none", steps=5).outputs["c"]
    assert torch.equal(longer.outputs["c"].images, own.images)  # it never took part


def test_a_loop_over_ones_own_function_is_the_pipelines() -> None:
    pipeline, call = plain()
    with_prompt, without = pipeline.encode_prompt(call["prompt"], "cpu", 1, True)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        u, c = pipeline.unet(torch.cat([x] * 2), t, torch.cat([without, with_prompt])).sample.chunk(2)
        return u + 4.0 * (c - u)

    def members(last: Member) -> list[Member]:
        return [Member("a", small_pipeline(1), {**call, "output_type": "latent"}), last]

    own = {"shape": SHAPE, "num_inference_steps": STEPS}
    mine = Member("b", PredictPipeline(predict, tiny_scheduler()), own)
    theirs = Member("b", pipeline, call)
    one, other = aggregate([mine]), aggregate([Member("b", pipeline, {**call, "output_type": "latent"})])
    torch.testing.assert_close(one.images, other.images, rtol=0, atol=1e-5)
    one, other = (aggregate(members(last)) for last in (mine, theirs))
    torch.testing.assert_close(one.images, other.images, rtol=0, atol=1e-5)
    assert one.calls == other.calls == {"a": 3, "b": 1}


def test_a_loop_over_ones_own_function_decodes_and_needs_noise() -> None:
    drawn = PredictPipeline(Toy(1), tiny_scheduler(), decode=lambda x: x.clamp(0, 1))
    assert drawn(shape=SHAPE, num_inference_steps=2, generator=generator()).images.min() == 0
    with pytest.raises(ValueError, match=r"give either latents or their shape, such as .* got neither"):
        drawn()
    with pytest.raises(ValueError, match="got both"):
        drawn(shape=SHAPE, latents=randn(*SHAPE))


def test_combining_predictions_of_other_noise_is_refused() -> None:
    pipeline, call = plain()
    members = [Member("a", pipeline, call), Member("b", pipeline, call, window=1.0)]
    with pytest.raises(ValueError, match="one and the same latents"):
        aggregate(members, "composable", shared_noise=False)
