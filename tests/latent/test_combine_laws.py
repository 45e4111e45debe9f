"""What every way to combine members must keep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusemble.latent.base import Combine, Step
from diffusemble.latent.combine import build_combine
from diffusemble.latent.predictions import from_noise
from diffusemble.registry import COMBINES
from tests.latent.members import BEFORE, as_kind, ddim, noise, row, step

REGIONS = [[[1.0, 1.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 1.0, 1.0]]]
OPTIONS: dict[str, dict[str, Any]] = {"masks": {"masks": REGIONS}}
WAYS = {name: OPTIONS.get(name, {}) for name in COMBINES}
# These give copies back as they are; composable adds their guidance up, as published, unless it is normalised.
KEEPS = {name: {"normalise": True} if name == "composable" else options for name, options in WAYS.items()}


def build(name: str) -> Combine:
    return build_combine(name, **WAYS[name])


def own(way: Combine, one: Step) -> Tensor:
    """What a member would go on with alone."""
    alone = one.prediction if way.moment == "prediction" else one.stepped
    assert alone is not None
    return alone


@pytest.mark.parametrize("name", COMBINES)
def test_a_member_alone_goes_on_as_it_is(name: str) -> None:
    way = build(name)
    for one in (step(), step(weight=0.3)):
        assert torch.equal(way([one])[0], own(way, one))


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("name", COMBINES)
def test_copies_of_a_member_go_on_as_it_would(name: str, n: int) -> None:
    way = build_combine(name, **KEEPS[name])
    for _ in range(3):
        copies = [step(m, seed=0, stepped=ddim(step(0)), weight=0.5 + m) for m in range(n)]
        for out in way(copies):
            torch.testing.assert_close(out, own(way, copies[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", COMBINES)
def test_one_result_per_member_in_its_own_number_type(name: str) -> None:
    steps = [step(m) for m in range(3)]
    half = [replace(one, prediction=one.prediction.bfloat16(), stepped=one.stepped.bfloat16()) for one in steps]  # type: ignore[union-attr]
    way = build(name)
    outs = way(half)
    assert [(out.shape, out.dtype) for out in outs] == [(one.sample.shape, torch.bfloat16) for one in steps]
    for out, exact in zip(outs, build(name)(steps), strict=True):
        assert float((out.float() - exact).abs().max()) < 0.15


@pytest.mark.parametrize("name", COMBINES)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    whole, part = build(name), build(name)
    for time in range(2):
        steps = [step(m, seed=m + 10 * time, sample=noise(time)) for m in range(3)]
        together, alone = whole(steps), part([row(one, 1) for one in steps])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[1:], b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", COMBINES)
def test_members_have_no_order(name: str) -> None:
    """But for the base of composable, whose prediction without a prompt is taken: here all have the same."""
    without = noise(9)

    def opinion(m: int) -> Step:
        one = step(m, weight=0.5 + m)
        assert one.halves is not None
        return replace(one, halves=(without, one.halves[1]))

    steps = [opinion(m) for m in range(3)]
    turned = [steps[2], steps[0], steps[1]]
    found, other = build(name)(steps), build(name)(turned)
    for a, b in zip([found[2], found[0], found[1]], other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in COMBINES if build(name).moment == "prediction"])
def test_predictions_are_joined_whatever_their_kind(name: str) -> None:
    steps = [step(m) for m in range(3)]
    kinds = ("epsilon", "v_prediction", "sample")
    mixed = [as_kind(one, kind) for one, kind in zip(steps, kinds, strict=True)]
    expected = build(name)(steps)[0]
    for out, kind in zip(build(name)(mixed), kinds, strict=True):
        said = from_noise(expected, steps[0].sample, BEFORE, kind)  # type: ignore[arg-type]
        torch.testing.assert_close(out, said, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in COMBINES if build(name).moment == "prediction"])
def test_predictions_about_different_latents_are_refused(name: str) -> None:
    steps = [step(0), step(1), step(2, sample=noise(77), index=4)]
    with pytest.raises(ValueError, match=r"one and the same latents.* step 4 .*member 2 .*member 0.*same noise"):
        build(name)(steps)


@pytest.mark.parametrize("name", [name for name in COMBINES if build(name).moment == "latents"])
def test_latents_are_asked_for_after_the_step_and_in_one_shape(name: str) -> None:
    with pytest.raises(ValueError, match=r"after the scheduler's step, and member 1 comes without `stepped` at step 0"):
        build(name)([step(0), step(1, stepped=None)])
    with pytest.raises(ValueError, match=r"latents of one shape; got \[\(2, 4, 7, 5\), \(2, 4, 8, 5\)\].*share one"):
        build(name)([step(0), step(1, stepped=noise(1, 2, 4, 8, 5))])


@pytest.mark.parametrize("name", ["composable", "magicfusion"])
def test_where_a_prompt_shows_no_effect_these_are_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"{name} needs what a prompt changes.*member 1 shows only one at step 0.*abo"
    ):
        build(name)([step(0), step(1, halves=None)])


@pytest.mark.parametrize("name", COMBINES)
def test_every_picture_begins_anew(name: str) -> None:
    steps = [step(m) for m in range(3)]
    used = build(name)
    used([replace(one, sample=noise(8)) for one in steps])
    used(steps)
    for a, b in zip(build(name)(steps), build(name)(steps), strict=True):
        assert torch.equal(a, b)
