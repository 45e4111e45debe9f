"""What each way to combine members does, against its formula."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from diffusemble.fusion import most_salient, saliency
from diffusemble.latent.amdm import ddpm_mean, draw_to, mix
from diffusemble.latent.base import Level, Step
from diffusemble.latent.combine import build_combine
from diffusemble.latent.predictions import to_clean
from tests.latent.members import AFTER, BEFORE, GUIDANCE, ddim, noise, step

REGIONS = [[[1.0, 1.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 1.0, 1.0]]]


def test_amdm_is_its_formulas() -> None:
    steps = [step(m, weight=1.0 + m, length=0.05 * (m + 1)) for m in range(3)]
    latents, weights = [noise(300 + m) for m in range(3)], [1.0, 2.0, 3.0]
    for out, one in zip(build_combine("amdm")(steps), steps, strict=True):
        torch.testing.assert_close(out, draw_to(mix(latents, weights), ddim(one), one.length, shell=True))
    for out, one in zip(build_combine("amdm", mix="unit", mean="ddpm", shell=False)(steps), steps, strict=True):
        mean = ddpm_mean(one.sample, to_clean(one.prediction, one.sample, BEFORE, "epsilon"), BEFORE, AFTER)
        torch.testing.assert_close(out, draw_to(mix(latents, weights, "unit"), mean, one.length))
    for out in build_combine("amdm", mix="renormalised", deviation=False)(steps):
        torch.testing.assert_close(out, mix(latents, weights, "renormalised"))


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_amdm_does_the_same_in_every_space(alpha: float) -> None:
    """Variance preserving latents, and the same drawing in Euler's space or another: x / alpha is the same."""

    def elsewhere(one: Step) -> Step:
        after, before = (Level(alpha, alpha * level.sigma / level.alpha) for level in (AFTER, BEFORE))
        assert one.stepped is not None
        sample, stepped = one.sample * alpha / BEFORE.alpha, one.stepped * alpha / AFTER.alpha
        return replace(one, before=before, after=after, sample=sample, stepped=stepped)

    steps = [step(m, length=0.3) for m in range(3)]
    for options in ({}, {"mean": "ddpm", "mix": "unit", "shell": False}):
        plain, other = build_combine("amdm", **options), build_combine("amdm", **options)
        for a, b in zip(plain(steps), other([elsewhere(one) for one in steps]), strict=True):
            torch.testing.assert_close(b, a * alpha / AFTER.alpha, rtol=1e-4, atol=1e-5)


def test_amdm_exchanges_from_its_first_step_on_unless_its_mean_is_the_published_one() -> None:
    steps = [step(0), step(1)]
    for out, one in zip(build_combine("amdm", mean="reference")(steps), steps, strict=True):
        assert out is one.stepped
    assert build_combine("amdm")(steps)[0] is not steps[0].stepped


def test_amdm_of_the_release_is_the_plain_sum_of_whatever_weights() -> None:
    earlier = [step(m, seed=50 + m, beta=0.01) for m in range(2)]
    steps = [step(m, weight=0.5 + m, length=0.1, previous=one) for m, one in enumerate(earlier)]
    mixed = 0.5 * noise(300) + 1.5 * noise(301)
    for out, one, before in zip(build_combine("amdm", compat="reference")(steps), steps, earlier, strict=True):
        mean = (one.sample - 0.01 / BEFORE.sigma * before.prediction) / 0.99**0.5
        torch.testing.assert_close(out, mixed - 0.1 * 140**0.5 * (mixed - mean) / (mixed - mean).norm())
    unknown = [replace(one, previous=replace(one.previous or one, beta=None)) for one in steps]
    with pytest.raises(ValueError, match=r"published mean.*scheduler of member 0 has none.*or mean='ddim'"):
        build_combine("amdm", compat="reference")(unknown)


def test_compat_leaves_no_choice() -> None:
    with pytest.raises(
        ValueError, match=r"compat='reference' is the published code as it is.*got mean, deviation beside"
    ):
        build_combine("amdm", compat="reference", mean="ddim", deviation=True)


def test_linear_is_the_weighted_mean() -> None:
    outs = build_combine("linear")([step(0, weight=1.0), step(1, weight=3.0)])
    for out in outs:
        torch.testing.assert_close(out, 0.25 * noise(300) + 0.75 * noise(301))
    with pytest.raises(ValueError, match=r"not summing to zero; got \[1.0, -1.0\]"):
        build_combine("linear")([step(0, weight=1.0), step(1, weight=-1.0)])


def test_masks_that_part_the_picture_copy_each_part() -> None:
    for out in build_combine("masks", masks=REGIONS)([step(m, weight=1.0 + m) for m in range(3)]):
        torch.testing.assert_close(out[..., :2], noise(300)[..., :2])
        torch.testing.assert_close(out[..., 2], noise(301)[..., 2])
        torch.testing.assert_close(out[..., 3:], noise(302)[..., 3:])


def test_masks_that_overlap_share_by_weight_and_what_none_covers_is_the_base_s() -> None:
    upper = torch.tensor([[1.0], [0.0]])  # of seven rows three, and half of the fourth
    way = build_combine("masks", masks=(upper, upper))
    out = way([step(0, weight=1.0), step(1, weight=3.0)])[1]
    torch.testing.assert_close(out[..., :4, :], (0.25 * noise(300) + 0.75 * noise(301))[..., :4, :])
    torch.testing.assert_close(out[..., 4:, :], noise(300)[..., 4:, :])


def test_a_member_that_has_left_leaves_its_place_to_the_base() -> None:
    out = build_combine("masks", masks=REGIONS)([step(0), step(2)])[0]
    torch.testing.assert_close(out[..., 2], noise(300)[..., 2])
    torch.testing.assert_close(out[..., 3:], noise(302)[..., 3:])


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([[1.0, 2.0]], r"option 'masks.0': A mask is a table \[h w\] of numbers from 0 up; got shape \[2\]"),
        ([[[1.0, -2.0]]], r"got shape \[1, 2\] and a least value of -2. Give 1 where"),
        ([[[]]], r"got shape \[1, 0\]. Give 1 where"),
        ([[[1, 2], [1]]], r"a table of numbers \[h w\]; got \[\[1, 2\], \[1\]\]. Give rows of equal length"),
    ],
)
def test_what_is_no_mask_is_refused(masks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_combine("masks", masks=masks)


def test_every_member_needs_a_mask() -> None:
    with pytest.raises(ValueError, match=r"there are 1, and none for member 1. Give one per member, base first"):
        build_combine("masks", masks=REGIONS[:1])([step(0), step(1)])


def test_composable_adds_guidance_and_subtracts_it_for_not() -> None:
    steps = [step(0, weight=1.0), step(1, weight=-0.5)]
    (u, c), (v, d) = (one.halves for one in steps if one.halves is not None)
    expected = u + GUIDANCE * (c - u) - 0.5 * GUIDANCE * (d - v)
    for out in build_combine("composable")(steps):
        torch.testing.assert_close(out, expected)
    normalised = u + GUIDANCE / 1.5 * (c - u) - 0.5 / 1.5 * GUIDANCE * (d - v)
    torch.testing.assert_close(build_combine("composable", normalise=True)(steps)[0], normalised)


def test_and_with_itself_guides_twice_as_strongly() -> None:
    one = step(0)
    assert one.halves is not None
    u, c = one.halves
    out = build_combine("composable")([one, step(1, seed=0)])[0]
    torch.testing.assert_close(out, u + 2 * GUIDANCE * (c - u))


def test_magicfusion_is_the_salient_member_s_prediction_bit_for_bit() -> None:
    steps = [step(m) for m in range(3)]
    saliencies = [saliency(one.halves[1], one.halves[0], GUIDANCE) for one in steps if one.halves is not None]
    maps = most_salient(torch.stack(saliencies, dim=1), [1.0] * 3)
    out = build_combine("magicfusion")(steps)[0]
    for m, one in enumerate(steps):
        where = maps[:, m : m + 1].expand_as(out).bool()
        assert where.any()
        assert torch.equal(out[where], one.prediction[where])


def test_superdiff_weighs_by_what_the_steps_before_told() -> None:
    """At first nothing is known; then the member that foretold the move leads."""
    way = build_combine("superdiff-or")
    first = [step(m, halves=None) for m in range(2)]
    torch.testing.assert_close(way(first)[0], (first[0].prediction + first[1].prediction) / 2)
    moved = ddim(first[1])
    then = [step(m, halves=None, before=AFTER, sample=moved, prediction=noise(40 + m)) for m in range(2)]
    torch.testing.assert_close(way(then)[0], then[1].prediction)


def test_superdiff_at_temperature_zero_is_the_mean() -> None:
    way = build_combine("superdiff-or", temperature=0)
    for time in range(3):
        steps = [step(m, sample=noise(time)) for m in range(2)]
        torch.testing.assert_close(way(steps)[0], (steps[0].prediction + steps[1].prediction) / 2)


def test_superdiff_counts_anew_when_a_member_joins_and_goes_on_when_one_leaves() -> None:
    way: Any = build_combine("superdiff-or")
    way([step(0), step(1)])
    way([step(0, sample=noise(5)), step(1, sample=noise(5))])
    assert way.log_densities[0].abs().min() > 0
    before = way.log_densities[1]
    way([step(m, sample=noise(6)) for m in range(3)])
    assert all(torch.equal(way.log_densities[m], torch.zeros(2)) for m in range(3))
    way([step(0, sample=noise(7)), step(2, sample=noise(7))])
    assert way.log_densities[2].abs().min() > 0
    assert before.shape == (2,)


@pytest.mark.parametrize("name", ["superdiff-or", "superdiff-and", "magicfusion", "masks"])
def test_only_composable_and_linear_take_negative_weights(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"Weights of .* are positive; member 1 has -1. .*composable, where a negative"
    ):
        build_combine(name, **({"masks": REGIONS} if name == "masks" else {}))([step(0), step(1, weight=-1.0)])


# -- Names and options -------------------------------------------------------------------------------------------------


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Unknown way to combine models 'foo'. Choose one of: amdm, linear, masks"):
        build_combine("foo")
    with pytest.raises(ValueError, match=r"Combining by 'linear' has no option 'weights'. Its options are: none."):
        build_combine("linear", weights=[1])
    with pytest.raises(ValueError, match=r"Combining by 'amdm' has no option 'men'. Its options are: mix, mean, dev"):
        build_combine("amdm", men="ddim")
    with pytest.raises(ValueError, match=r"Combining by 'amdm', option 'mix': Input should be 'slerp', .*got 'sleep'"):
        build_combine("amdm", mix="sleep")
