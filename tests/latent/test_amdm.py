"""AMDM's formulas: what each must keep, and by hand."""

from __future__ import annotations

import itertools
from math import acos, pi, sin, sqrt

import pytest
import torch
from torch import Tensor

from diffusemble.latent.amdm import (
    ddim_mean,
    ddpm_mean,
    draw_to,
    mix,
    reference_draw_to,
    reference_mean,
    reference_weights,
    unit_weights,
)
from diffusemble.latent.base import Level
from tests.latent.members import noise

MIXES = ("slerp", "renormalised", "unit", "linear")


def orthogonal(n: int, batch: int = 3, radius: float = 5.0) -> list[Tensor]:
    """n latents ``[batch, 4, 3, 2]`` of one norm at right angles, different in every sample."""
    q = torch.linalg.qr(noise(7, batch, 24, n)).Q * radius
    return [q[:, :, m].reshape(batch, 4, 3, 2) for m in range(n)]


def norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


@pytest.mark.parametrize("weights", [(1.0,), (0.3, 0.4), (1.0, 1.0, 1.0), (0.0, 2.0, 5.0, 0.1)])
def test_unit_weights_have_norm_one_and_keep_ratios(weights: tuple[float, ...]) -> None:
    unit = unit_weights(weights)
    assert sum(w**2 for w in unit) == pytest.approx(1)
    for (a, b), (u, v) in zip(itertools.pairwise(weights), itertools.pairwise(unit), strict=True):
        assert a * v == pytest.approx(b * u)


@pytest.mark.parametrize("weights", [(), (0.0, 0.0), (1.0, -0.5)])
def test_weights_of_no_sphere_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"one weight per model, none negative and not all zero; got \[.*only their"):
        unit_weights(weights)


def test_the_published_weights_and_what_is_wrong_with_three() -> None:
    assert reference_weights(0.6) == pytest.approx((0.6, 0.8))
    three = reference_weights(0.3, 0.3)
    assert three == pytest.approx((0.09, sqrt(0.91) * 0.3, 0.91))
    assert sqrt(sum(w**2 for w in three)) == pytest.approx(0.958, abs=1e-3)
    assert sum(w**2 for w in reference_weights(0.47, 0.5)) == pytest.approx(1 - 0.47**2 * (1 - 0.5**2))
    for wrong in ((), (0.1, 0.2, 0.3), (1.2,)):
        with pytest.raises(ValueError, match=r"one ω.*from 0 to 1; got \[.*use unit weights"):
            reference_weights(*wrong)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("how", ["slerp", "renormalised", "unit"])
def test_orthogonal_latents_all_mix_to_the_unit_weighted_sum(how: str, n: int) -> None:
    latents, weights = orthogonal(n), [float(m + 1) for m in range(n)]
    mixed = mix(latents, weights, how)
    expected = sum(w * x for w, x in zip(unit_weights(weights), latents, strict=True))
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(norms(mixed), torch.full((3,), 5.0))


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("how", MIXES)
def test_equal_latents_stay_as_they_are_but_for_the_published_sum(how: str, n: int) -> None:
    x, weights = noise(2), [1.0, 0.5, 2.0, 0.7, 3.0][:n]
    factor = sum(unit_weights(weights)) if how == "unit" else 1.0
    torch.testing.assert_close(mix([x] * n, weights, how), factor * x)


@pytest.mark.parametrize("how", ["slerp", "renormalised"])
def test_the_norm_is_the_members_own(how: str) -> None:
    a, b, c = (noise(seed) for seed in (3, 4, 5))
    a, b, c = (5 * x / norms(x).view(-1, 1, 1, 1) for x in (a + b, b + c / 2, c))  # alike, of norm 5
    torch.testing.assert_close(norms(mix([a, b, c], [1, 2, 3], how)), torch.full((2,), 5.0))
    # Members of different norm: their mean with the squares of the unit weights.
    torch.testing.assert_close(norms(mix([a, 2 * b], [3, 4], how)), torch.full((2,), 5.0 * (0.36 + 2 * 0.64)))


@pytest.mark.parametrize("angle", [0.1, 1.0, 2.5])
def test_slerp_of_two_is_the_arc_between_them(angle: float) -> None:
    e1, e2 = (x.flatten(1) for x in orthogonal(2, radius=1.0))
    other = torch.cos(torch.tensor(angle)) * e1 + torch.sin(torch.tensor(angle)) * e2
    weights = unit_weights((1.0, 2.0))
    share = 2 / pi * acos(weights[0])
    expected = (sin((1 - share) * angle) * e1 + sin(share * angle) * other) / sin(angle)
    torch.testing.assert_close(mix([e1, other], weights), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", MIXES)
def test_mixing_knows_no_order_no_batch_and_no_scale(how: str) -> None:
    latents, weights = [noise(seed) for seed in (3, 4, 5)], [1.0, 2.0, 0.5]
    latents[1] = latents[1] + latents[0]
    mixed = mix(latents, weights, how)
    turned = mix([latents[2], latents[0], latents[1]], [weights[2], weights[0], weights[1]], how)
    torch.testing.assert_close(turned, mixed, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mix([x[1:] for x in latents], weights, how), mixed[1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mix([3 * x for x in latents], weights, how), 3 * mixed, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mix(latents, [5 * w for w in weights], how), mixed)
    assert mix([x.bfloat16() for x in latents], weights, how).dtype == torch.bfloat16
    assert mix(latents[:1], weights[:1], how) is latents[0]


@pytest.mark.parametrize("how", MIXES)
def test_a_model_of_weight_zero_says_nothing_and_zeros_do_no_harm(how: str) -> None:
    a, b = noise(3), noise(4)
    torch.testing.assert_close(mix([a, b], [1.0, 0.0], how), a)
    assert torch.equal(mix([torch.zeros(2, 3), torch.zeros(2, 3)], [1, 1], how), torch.zeros(2, 3))


# -- Means -------------------------------------------------------------------------------------------------------------

LEVELS = [
    (Level(0.6, 0.8), Level(0.8, 0.6)),  # variance preserving
    (Level(1.0, 7.0), Level(1.0, 3.0)),  # Euler's space
    (Level(0.3, 0.7), Level(0.5, 0.5)),  # flow matching
]


@pytest.mark.parametrize(("before", "after"), LEVELS)
def test_means_of_an_exact_denoiser(before: Level, after: Level) -> None:
    clean, eps = noise(3), noise(4)
    x = before.alpha * clean + before.sigma * eps
    torch.testing.assert_close(ddim_mean(clean, eps, after), after.alpha * clean + after.sigma * eps)
    # The posterior mean keeps the picture and only part of the noise; with the posterior's variance it is all there.
    mean = ddpm_mean(x, clean, before, after)
    ratio = before.alpha / after.alpha
    left = ratio * after.sigma**2 / before.sigma
    torch.testing.assert_close(mean, after.alpha * clean + left * eps)
    variance = after.sigma**2 * (1 - (ratio * after.sigma / before.sigma) ** 2)
    assert left**2 + variance == pytest.approx(after.sigma**2)


def test_the_posterior_mean_of_one_training_step_is_the_textbook_s() -> None:
    """(x - β ε / √(1 - ᾱ)) / √(1 - β), which is also what the published code computes."""
    bar, beta = 0.36, 0.1
    before, after = Level(sqrt(bar), sqrt(1 - bar)), Level(sqrt(bar / (1 - beta)), sqrt(1 - bar / (1 - beta)))
    x, eps = noise(3), noise(4)
    clean = (x - before.sigma * eps) / before.alpha
    expected = (x - beta / sqrt(1 - bar) * eps) / sqrt(1 - beta)
    torch.testing.assert_close(ddpm_mean(x, clean, before, after), expected)
    torch.testing.assert_close(reference_mean(x, eps, before, beta), expected)


def test_the_last_step_leads_to_the_clean_latents() -> None:
    clean, eps = noise(3), noise(4)
    before, last = LEVELS[0][0], Level(1.0, 0.0)
    x = before.alpha * clean + before.sigma * eps
    torch.testing.assert_close(ddim_mean(clean, eps, last), clean)
    torch.testing.assert_close(ddpm_mean(x, clean, before, last), clean)


# -- Deviation optimisation --------------------------------------------------------------------------------------------


def test_the_step_has_its_length_per_sample_and_ends_at_the_mean() -> None:
    z, mean = noise(3), noise(4)
    mean[1] = z[1] + 0.01 * noise(5)[1]  # very near in the second sample
    drawn = draw_to(z, mean, 0.2)
    assert norms(z - drawn)[0] == pytest.approx(0.2 * sqrt(4 * 7 * 5))
    torch.testing.assert_close(drawn[1], mean[1])
    closer, far = norms(drawn - mean), norms(z - mean)
    assert closer[0] == pytest.approx(float(far[0]) - 0.2 * sqrt(140), rel=1e-5)


@pytest.mark.parametrize("length", [0.0, 0.05, 0.5, 1.0, 50.0])
def test_no_step_passes_the_mean(length: float) -> None:
    z, mean = noise(3), noise(4)
    drawn = draw_to(z, mean, length)
    along = ((z - drawn) * (z - mean)).flatten(1).sum(dim=1) / norms(z - mean) ** 2
    assert ((along >= 0) & (along <= 1 + 1e-6)).all()
    torch.testing.assert_close(z + along.view(-1, 1, 1, 1) * (mean - z), drawn)
    assert length or torch.equal(drawn, z)


@pytest.mark.parametrize("length", [0.0, 0.05, 0.5, 50.0])
def test_on_the_shell_latents_of_one_norm_keep_it(length: float) -> None:
    z, mean = (x * 12 / norms(x).view(-1, 1, 1, 1) for x in (noise(3), noise(4)))
    drawn, straight = draw_to(z, mean, length, shell=True), draw_to(z, mean, length)
    torch.testing.assert_close(norms(drawn), torch.full((2,), 12.0))
    torch.testing.assert_close(drawn / 12, straight / norms(straight).view(-1, 1, 1, 1))
    if length == 0.5:
        assert norms(straight).max() < 10
    halfway = draw_to(z, 3 * z, 12 / sqrt(140), shell=True)
    torch.testing.assert_close(norms(halfway), torch.full((2,), 24.0))


def test_steps_know_no_batch_scale_with_latents_and_stay_finite() -> None:
    z, mean = noise(3), noise(4)
    assert torch.equal(draw_to(z, mean, 0.3)[1:], draw_to(z[1:], mean[1:], 0.3))
    torch.testing.assert_close(draw_to(7 * z, 7 * mean, 0.7), 7 * draw_to(z, mean, 0.1))
    assert torch.equal(draw_to(z, z, 0.3), z)
    assert draw_to(z.half(), mean.half(), 0.3).dtype == torch.half
    with pytest.raises(ValueError, match=r"0 or more; got -0.1. The published.*0.27 to 0.43"):
        draw_to(z, mean, -0.1)


def test_the_published_step_takes_one_norm_passes_the_mean_and_fails_at_it() -> None:
    z, mean = noise(3), noise(4)
    whole = (z - mean).norm()
    torch.testing.assert_close(reference_draw_to(z, mean, 0.1), z - 0.1 * sqrt(140) * (z - mean) / whole)
    assert reference_draw_to(z, z, 0.1).isnan().all()
    beyond = reference_draw_to(z, mean, 50.0)
    assert ((mean - beyond) * (z - mean)).sum() > 0
