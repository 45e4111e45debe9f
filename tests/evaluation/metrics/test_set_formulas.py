"""Closed forms of the set metrics, through their states."""

import math

import numpy as np
import pytest
import torch

from diffusemble.evaluation.metrics.inception_score import InceptionScore, inception_score
from diffusemble.evaluation.metrics.sets import CMMD, FID, KID
from diffusemble.evaluation.statistics import clip_discrepancy, gaussian_kernel


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(mean: torch.Tensor, covariance: torch.Tensor, count: int = 400) -> torch.Tensor:
    """A sample whose mean and unbiased covariance are exactly these."""
    x = normal(0, count, len(mean))
    x = x - x.mean(dim=0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / (count - 1)), x.T, upper=False).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def distance(metric, x, y):
    state, reference = metric.state(), metric.state()
    state.update(x)
    reference.update(y)
    return state.compute(reference)


def test_frechet_distance_of_two_gaussians_is_the_closed_form():
    mean, other = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.0, 1.0, 0.5]).double()
    turn = torch.linalg.qr(normal(3, 3, 3)).Q  # the same axes, not those of the coordinates
    spread, wide = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 1.0, 16.0]).double()
    x = with_moments(mean, turn @ spread.diag() @ turn.T)
    y = with_moments(other, turn @ wide.diag() @ turn.T)
    expected = (mean - other).square().sum() + (spread.sqrt() - wide.sqrt()).square().sum()
    assert distance(FID(None), x, y) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("metric", [FID(None), CMMD(None)], ids=["fid", "cmmd"])
def test_the_distance_of_a_set_to_itself_is_zero(metric):
    x = torch.nn.functional.normalize(normal(0, 40, 7), dim=1)
    assert distance(metric, x, x) == pytest.approx(0, abs=1e-5)


def test_kid_of_a_set_with_itself_is_below_zero_by_the_missing_diagonal():
    x = normal(0, 30, 5).float().double()
    kernel = (x @ x.T / 5 + 1) ** 3
    gap = kernel.mean() - kernel.trace() / 30  # mean over all pairs minus mean over own pairs
    assert distance(KID(None), x, x) == pytest.approx(float(2 * gap / 29), rel=1e-9)
    assert distance(KID(None), x, x) < 0


def test_cmmd_of_two_points_is_the_closed_form():
    # Unit vectors at a right angle have the squared distance 2: 1000 (1 + 1 - 2 exp(-2 / 200)).
    x, y = torch.tensor([[1.0, 0.0]]).repeat(3, 1), torch.tensor([[0.0, 1.0]]).repeat(4, 1)
    assert distance(CMMD(None), x, y) == pytest.approx(2000 * (1 - math.exp(-0.01)), rel=1e-9)


def test_cmmd_counts_every_feature_with_itself_and_goes_by_rows():
    x, y = normal(0, 1500, 3).numpy(), normal(1, 1100, 3).numpy() + 0.2
    expected = gaussian_kernel(x, x).mean() + gaussian_kernel(y, y).mean() - 2 * gaussian_kernel(x, y).mean()
    assert clip_discrepancy(x, y) == pytest.approx(1000 * expected, rel=1e-8)
    pairs = np.exp(-np.square(x[:4, None] - y[None, :5]).sum(axis=2) / 200)
    np.testing.assert_allclose(gaussian_kernel(x[:4], y[:5]), pairs, rtol=1e-12)


def test_inception_score_of_unsure_pictures_is_one_and_of_all_classes_their_number():
    assert inception_score(torch.zeros(20, 7), splits=2).mean == pytest.approx(1)
    one_hot = 1e4 * torch.eye(7).repeat(6, 1)
    score = inception_score(one_hot, splits=3)
    assert score.mean == pytest.approx(7)
    assert score.deviation == pytest.approx(0, abs=1e-9)
    alike = 1e4 * torch.eye(7)[:1].repeat(20, 1)
    assert inception_score(alike).mean == pytest.approx(1)


def test_inception_score_is_the_exponential_of_the_mutual_information():
    logits = normal(0, 50, 4) * 2
    scores = []
    for part in logits.numpy().reshape(5, 10, 4):
        p = np.exp(part) / np.exp(part).sum(axis=1, keepdims=True)
        entropy = -(p * np.log(p)).sum(axis=1).mean()
        q = p.mean(axis=0)
        scores.append(np.exp(-(q * np.log(q)).sum() - entropy))
    found = inception_score(logits, splits=5)
    assert found.mean == pytest.approx(np.mean(scores))
    assert found.deviation == pytest.approx(np.std(scores))


def test_inception_score_does_not_see_a_shift_of_the_logits_and_needs_no_reference():
    metric, logits = InceptionScore(None), normal(0, 40, 5)
    values = []
    for shift in (0.0, 30.0):
        state = metric.state()
        state.update(logits + shift)
        values.append(state.compute())
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert not metric.needs_reference
    assert metric.higher_is_better


def test_too_few_pictures_for_the_splits_are_refused():
    with pytest.raises(ValueError, match=r"got 9 pictures and 10 splits.*fewer splits"):
        inception_score(torch.zeros(9, 3))
