"""Closed forms and laws of the statistics."""

import numpy as np
import pytest

from diffusemble.evaluation.statistics import (
    Moments,
    frechet_distance,
    frechet_distance_to,
    kernel_distance,
    kernel_gap,
    paired_bootstrap,
    polynomial_kernel,
    win_rate,
)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def gaussian(mean: np.ndarray, covariance: np.ndarray, count: int = 1000) -> Moments:
    """Moments of an imagined sample whose mean and covariance are exactly these."""
    return Moments(count, count * mean, (count - 1) * covariance + count * np.outer(mean, mean))


def test_frechet_distance_of_axis_aligned_gaussians_is_the_closed_form():
    mean, spread = np.array([1.0, -2.0, 0.5]), np.array([1.0, 4.0, 9.0])
    other, wide = np.array([0.0, 1.0, 0.5]), np.array([4.0, 1.0, 16.0])
    expected = ((mean - other) ** 2).sum() + ((np.sqrt(spread) - np.sqrt(wide)) ** 2).sum()
    found = frechet_distance(gaussian(mean, np.diag(spread)), gaussian(other, np.diag(wide)))
    assert found == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_is_symmetric_and_invariant_under_rotation():
    x, y = normal(0, 50, 7), 1.5 * normal(1, 60, 7) + 0.3
    turn, _ = np.linalg.qr(normal(2, 7, 7))
    distance = frechet_distance(Moments.of(x), Moments.of(y))
    assert frechet_distance(Moments.of(y), Moments.of(x)) == pytest.approx(distance)
    assert frechet_distance(Moments.of(x @ turn), Moments.of(y @ turn)) == pytest.approx(distance)


def test_frechet_distance_agrees_with_the_general_matrix_root():
    a, b = Moments.of(normal(0, 40, 5)), Moments.of(normal(1, 40, 5) * [1, 2, 3, 4, 5])
    values = np.linalg.eigvals(a.covariance @ b.covariance)
    gap = a.mean - b.mean
    expected = gap @ gap + np.trace(a.covariance + b.covariance) - 2 * np.sqrt(values.real).sum()
    assert frechet_distance(a, b) == pytest.approx(expected)


@pytest.mark.parametrize("count", [6, 40])
def test_frechet_distance_of_a_set_with_itself_is_zero(count):
    moments = Moments.of(normal(0, count, 11))
    assert frechet_distance(moments, moments) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("count", [4, 30])
def test_the_short_way_to_a_reference_gives_the_same(count):
    reference, x = Moments.of(normal(0, 50, 9)), 2 * normal(1, count, 9) + 0.5
    assert frechet_distance_to(reference, x) == pytest.approx(frechet_distance(reference, Moments.of(x)))


def test_moments_of_parts_add_up_to_those_of_the_whole():
    x = normal(0, 30, 4)
    merged, whole = Moments.of(x[:11]) + Moments.of(x[11:]), Moments.of(x)
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.covariance, np.cov(x.T), rtol=1e-10)
    np.testing.assert_allclose(merged.mean, x.mean(axis=0), rtol=1e-10)


def test_kernel_distance_is_the_mean_over_pairs_of_different_rows():
    x, y = normal(0, 5, 3), normal(1, 4, 3)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 3 + 1) ** 3)

    within = [np.mean([kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]) for z in (x, y)]
    expected = sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(expected)
    assert polynomial_kernel(x, y).shape == (5, 4)


def test_kernel_distance_of_equal_distributions_is_about_zero_and_grows_with_the_shift():
    x, y = normal(0, 600, 8), normal(1, 600, 8)
    distances = [kernel_distance(x, y + shift) for shift in (0.0, 0.3, 0.6)]
    assert abs(distances[0]) < 0.03
    assert distances[0] < distances[1] < distances[2]


def test_kernel_gap_is_the_difference_of_two_distances_and_its_jackknife():
    x, y, r = normal(0, 40, 4) + 0.4, normal(1, 40, 4), normal(2, 90, 4)
    gap = kernel_gap(x, y, r)
    assert gap.value == pytest.approx(kernel_distance(x, r) - kernel_distance(y, r))
    keep = [np.arange(40) != i for i in range(40)]
    parts = np.array([kernel_distance(x[k], r) - kernel_distance(y[k], r) for k in keep])
    error = np.sqrt(39 / 40 * np.square(parts - parts.mean()).sum())
    assert gap.high - gap.value == pytest.approx(1.96 * error)
    assert gap.clear
    assert not kernel_gap(x, x, r).clear


def test_bootstrap_interval_of_the_mean_is_the_textbook_one():
    x = normal(0, 400) + 0.2
    found = paired_bootstrap(x)
    error = x.std() / 20
    assert found.value == pytest.approx(x.mean())
    assert found.low == pytest.approx(x.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(x.mean() + 1.96 * error, abs=0.1 * error)


def test_bootstrap_intervals_cover_the_true_mean_about_95_times_in_100():
    draws = np.random.default_rng(5).exponential(size=(300, 60))
    found = [paired_bootstrap(x, samples=400, seed=i) for i, x in enumerate(draws)]
    covered = np.mean([interval.low <= 1 <= interval.high for interval in found])
    assert 0.89 < covered < 0.98


def test_bootstrap_draws_whole_groups():
    values = np.repeat(normal(0, 25), 8)
    alone = paired_bootstrap(values)
    grouped = paired_bootstrap(values, groups=[f"concept {i:02d}" for i in range(25) for _ in range(8)])
    once = paired_bootstrap(normal(0, 25))
    assert grouped.value == pytest.approx(alone.value)
    assert grouped.high - grouped.low == pytest.approx(once.high - once.low)
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_win_rate_counts_ties_half():
    assert win_rate([1, 2, 3, 4], [2, 2, 2, 2]) == pytest.approx(0.375)
    assert win_rate([1, 2, 3, 4], [2, 2, 2, 2], better=np.greater) == pytest.approx(0.625)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"one difference per image.*\(0,\).*not empty"):
        paired_bootstrap([])
    with pytest.raises(ValueError, match=r"at least two features.*\(1, 3\).*more images"):
        Moments.of(np.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"equal sizes; got 3 and 4.*same prompts"):
        kernel_gap(normal(0, 3, 2), normal(0, 4, 2), normal(0, 5, 2))
    with pytest.raises(ValueError, match="at least two features; got 1"):
        Moments(1, np.zeros(2), np.zeros((2, 2))).covariance


def test_a_jackknife_over_groups_of_one_is_that_over_pictures_and_copies_do_not_narrow_it():
    rng = np.random.default_rng(4)
    x, y, reference = (rng.normal(size=(n, 5)) for n in (9, 9, 20))
    alone = kernel_gap(x, y, reference)
    grouped = kernel_gap(x, y, reference, [str(i) for i in range(9)])
    assert grouped == alone
    brute = []
    for left in range(9):
        kept = [i for i in range(9) if i != left]
        brute.append(kernel_distance(x[kept], reference) - kernel_distance(y[kept], reference))
    spread = np.sqrt(8 / 9 * np.square(np.array(brute) - np.mean(brute)).sum())
    assert alone.high - alone.value == pytest.approx(1.96 * spread)
    pairs = kernel_gap(x, y, reference, [str(i // 3) for i in range(9)])
    brute = []
    for left in range(3):
        kept = [i for i in range(9) if i // 3 != left]
        brute.append(kernel_distance(x[kept], reference) - kernel_distance(y[kept], reference))
    spread = np.sqrt(2 / 3 * np.square(np.array(brute) - np.mean(brute)).sum())
    assert pairs.high - pairs.value == pytest.approx(1.96 * spread)
    assert kernel_gap(x, y, reference, ["one"] * 9).high == np.inf
