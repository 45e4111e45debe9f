"""Noise, picture, velocity and flow: exact views of one pair, in closed form, at every point of every path."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch
from torch import Tensor

from diffusemble.parametrisation.kinds import Point, Prediction, coefficients, convert, factors

KINDS = get_args(Prediction)
CLOSE = {"rtol": 1e-12, "atol": 1e-12}
POINTS = [(0.6, 0.8), (1.0, 7.0), (0.3, 0.7), (0.99957, 0.029), (0.0683, 0.99766)]


def values(seed: int) -> Tensor:
    return torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


CLEAN, NOISE = values(1), values(2)


def told(alpha: float, sigma: float, kind: Prediction) -> Tensor:
    a, b = coefficients(alpha, sigma, kind)
    return a * CLEAN + b * NOISE


@pytest.mark.parametrize(("alpha", "sigma"), POINTS)
@pytest.mark.parametrize(("kind", "into"), list(itertools.product(KINDS, KINDS)))
def test_every_kind_says_the_same(kind: Prediction, into: Prediction, alpha: float, sigma: float) -> None:
    sample = alpha * CLEAN + sigma * NOISE
    found = convert(told(alpha, sigma, kind), sample, alpha, sigma, kind, into)
    torch.testing.assert_close(found, told(alpha, sigma, into), **CLOSE)
    back = convert(found, sample, alpha, sigma, into, kind)
    torch.testing.assert_close(back, told(alpha, sigma, kind), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_touched_where_nothing_is_converted(kind: Prediction) -> None:
    assert convert(CLEAN, NOISE, 0.0, 0.0, kind, kind) is CLEAN


def test_closed_forms() -> None:
    alpha, sigma = 0.6, 0.8  # α² + σ² = 1
    sample = alpha * CLEAN + sigma * NOISE
    v = alpha * NOISE - sigma * CLEAN
    torch.testing.assert_close(convert(v, sample, alpha, sigma, "v_prediction", "sample"), 0.6 * sample - 0.8 * v)
    torch.testing.assert_close(convert(v, sample, alpha, sigma, "v_prediction", "epsilon"), 0.8 * sample + 0.6 * v)
    flow = NOISE - CLEAN
    torch.testing.assert_close(convert(flow, sample, 0.25, 0.75, "flow_prediction", "sample"), sample - 0.75 * flow)
    assert coefficients(0.25, 0.75, "flow_prediction") == (-1, 1)


def test_coefficients_depend_on_the_ratio_alone() -> None:
    for kind in KINDS:
        here, there = coefficients(0.6, 0.8, kind), coefficients(3.0, 4.0, kind)
        assert here == pytest.approx(there, rel=1e-15)


def test_every_sample_has_its_own_point() -> None:
    alpha = torch.tensor([0.6, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    sigma = torch.tensor([0.8, 7.0], dtype=torch.float64).view(2, 1, 1, 1)
    sample = alpha * CLEAN + sigma * NOISE
    found = convert(NOISE, sample, alpha, sigma, "epsilon", "v_prediction")
    for row in range(2):
        alone = convert(NOISE[row], sample[row], float(alpha[row]), float(sigma[row]), "epsilon", "v_prediction")
        torch.testing.assert_close(found[row], alone, **CLOSE)


def test_weights_that_sum_to_one_give_one_mean_in_all_terms() -> None:
    alpha, sigma, weights = 0.6, 0.8, (0.2, 0.5, 0.3)
    sample, predictions = values(3), [values(4), values(5), values(6)]
    mean = sum(weight * p for weight, p in zip(weights, predictions, strict=True))
    for into in KINDS:
        converted = [convert(p, sample, alpha, sigma, "epsilon", into) for p in predictions]
        other = sum(weight * p for weight, p in zip(weights, converted, strict=True))
        torch.testing.assert_close(other, convert(mean, sample, alpha, sigma, "epsilon", into), **CLOSE)


@pytest.mark.parametrize("into", [kind for kind in KINDS if kind != "epsilon"])
def test_noise_says_nothing_of_the_picture_without_a_picture(into: Prediction) -> None:
    with pytest.raises(ValueError, match=r"pure noise \(alpha 0\).*that predicts noise"):
        convert(NOISE, NOISE, 0.0, 1.0, "epsilon", into)


@pytest.mark.parametrize("into", [kind for kind in KINDS if kind != "sample"])
def test_a_picture_says_nothing_of_the_noise_without_noise(into: Prediction) -> None:
    with pytest.raises(ValueError, match=r"Clean latents \(sigma 0\).*Ask before it"):
        convert(CLEAN, CLEAN, 1.0, 0.0, "sample", into)


@pytest.mark.parametrize("kind", ["v_prediction", "flow_prediction"])
@pytest.mark.parametrize(("alpha", "sigma"), [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("into", KINDS)
def test_velocity_and_flow_say_everything_everywhere(
    kind: Prediction, alpha: float, sigma: float, into: Prediction
) -> None:
    sample = alpha * CLEAN + sigma * NOISE
    found = convert(told(alpha, sigma, kind), sample, alpha, sigma, kind, into)
    torch.testing.assert_close(found, told(alpha, sigma, into), **CLOSE)


def test_one_bad_sample_of_many_is_enough() -> None:
    alpha = torch.tensor([0.5, 0.0])
    with pytest.raises(ValueError, match="alpha 0"):
        factors(alpha, 1 - alpha, "epsilon", coefficients(alpha, 1 - alpha, "sample"))


def test_size_and_ratio_of_a_point() -> None:
    point = Point(torch.tensor([0.6, 0.0, 2.0]), torch.tensor([0.8, 3.0, 0.0]))
    torch.testing.assert_close(point.size, torch.tensor([1.0, 3.0, 2.0]))
    torch.testing.assert_close(point.ratio, torch.tensor([4 / 3, torch.inf, 0.0]).log())
