"""SuperDiff's density estimate against densities known in closed form, and what its weights must keep."""

from __future__ import annotations

import itertools
from math import sqrt

import pytest
import torch
from torch import Tensor

from diffusemble.latent.base import Level, Step
from diffusemble.latent.combine import build_combine
from diffusemble.latent.superdiff import both, either, kept, log_density_change
from tests.latent.members import noise

MEANS = (-1.0, 1.5)
SPREAD = 0.4
WIDTH = 3  # values of a sample


def preserving(count: int, least: float = 0.02) -> list[Level]:
    """Variance preserving levels, from nearly all noise down."""
    sigmas = torch.linspace(0.999, least, count, dtype=torch.float64)
    return [Level(sqrt(1 - float(s) ** 2), float(s)) for s in sigmas]


def told(x: Tensor, mean: float, level: Level) -> Tensor:
    """ε of the exact denoiser of N(mean, SPREAD²)."""
    variance = (level.alpha * SPREAD) ** 2 + level.sigma**2
    return level.sigma * (x - level.alpha * mean) / variance


def log_density(x: Tensor, mean: float, level: Level) -> Tensor:
    variance = (level.alpha * SPREAD) ** 2 + level.sigma**2
    return -((x - level.alpha * mean) ** 2 / (2 * variance)).flatten(1).sum(dim=1)


def ancestral(x: Tensor, eps: Tensor, before: Level, after: Level, generator: torch.Generator) -> Tensor:
    """One step of DDPM between two levels."""
    ratio, clean = before.alpha / after.alpha, (x - before.sigma * eps) / before.alpha
    variance = before.sigma**2 - (ratio * after.sigma) ** 2
    mean = (ratio * after.sigma**2 * x + variance * after.alpha * clean) / before.sigma**2
    deviation = after.sigma / before.sigma * sqrt(max(variance, 0.0))
    return mean + deviation * torch.randn(x.shape, generator=generator, dtype=x.dtype)


def members(x: Tensor, before: Level, after: Level, index: int, weights: tuple[float, ...] = (1.0, 1.0)) -> list[Step]:
    return [
        Step(index, 0, before, after, x, told(x, mean, before), "epsilon", weight, 0.0, member=m)
        for m, (mean, weight) in enumerate(zip(MEANS, weights, strict=True))
    ]


def drawn(name: str, count: int, batch: int, weights: tuple[float, ...] = (1.0, 1.0)) -> tuple[Tensor, Level]:
    """Samples of the combination of two Gaussians, and their level."""
    levels, way = preserving(count), build_combine(name)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(batch, 1, WIDTH, generator=generator, dtype=torch.float64)
    for index, (before, after) in enumerate(itertools.pairwise(levels)):
        eps = way(members(x, before, after, index, weights))[0]
        x = ancestral(x, eps.double(), before, after, generator)
    return x, levels[-1]


@pytest.mark.parametrize(("count", "error"), [(50, 1.2), (800, 0.3)])
def test_the_estimate_converges_to_the_true_ratio_of_densities(count: int, error: float) -> None:
    levels, generator = preserving(count, least=0.2), torch.Generator().manual_seed(3)
    x = torch.randn(64, 1, WIDTH, generator=generator, dtype=torch.float64)
    start = [log_density(x, mean, levels[0]) for mean in MEANS]
    total = torch.zeros(2, 64, dtype=torch.float64)
    for before, after in itertools.pairwise(levels):
        eps = torch.stack([told(x, mean, before) for mean in MEANS])
        moved = ancestral(x, eps.mean(dim=0), before, after, generator)
        total += log_density_change(eps.flatten(2), x.flatten(1), moved.flatten(1), before, after)
        x = moved
    true = [log_density(x, mean, levels[-1]) - first for mean, first in zip(MEANS, start, strict=True)]
    found, expected = total[0] - total[1], true[0] - true[1]
    assert expected.std() > 1
    assert (found - expected).abs().mean() < error


def test_a_step_is_told_from_pure_noise_too() -> None:
    before, after, x = Level(0.0, 1.0), Level(0.3, 0.95), noise(3, 2, 24)
    eps = noise(4, 3, 2, 24)
    change = log_density_change(eps, x, noise(5, 2, 24), before, after)
    torch.testing.assert_close(change, (eps * x).sum(dim=2) - eps.square().sum(dim=2) / 2)
    assert kept(before, after) == 0


def test_estimates_do_not_depend_on_the_space_latents_live_in() -> None:
    """Variance preserving latents and Euler's of the same drawing."""
    before, after = Level(0.6, 0.8), Level(0.8, 0.6)
    x, end, eps = noise(3, 2, 24), noise(4, 2, 24), noise(5, 3, 2, 24)
    plain = log_density_change(eps, x, end, before, after)
    euler = [Level(1.0, level.sigma / level.alpha) for level in (before, after)]
    torch.testing.assert_close(log_density_change(eps, x / 0.6, end / 0.8, *euler), plain)
    assert kept(*euler) == pytest.approx(kept(before, after))


def test_or_draws_the_mixture() -> None:
    for weights in ((1.0, 1.0), (3.0, 1.0)):
        x, _ = drawn("superdiff-or", 400, 1500, weights)
        values = x.mean(dim=2).flatten()
        first = values < sum(MEANS) / 2
        # Three values vote, so the two modes are far apart: hardly anything lies between.
        assert float(first.double().mean()) == pytest.approx(weights[0] / sum(weights), abs=0.05)
        assert float(values[first].mean()) == pytest.approx(MEANS[0], abs=0.1)
        assert float(values[~first].mean()) == pytest.approx(MEANS[1], abs=0.1)


def test_and_draws_what_is_equally_likely_under_both() -> None:
    x, level = drawn("superdiff-and", 400, 500)
    gap = log_density(x, MEANS[0], level) - log_density(x, MEANS[1], level)
    # Under one of the models the gap would be of the size |m₁ - m₂|² · 3 / (2 · 0.4²), about 59.
    assert float(gap.abs().mean()) < 1
    assert float(x.mean()) == pytest.approx(sum(MEANS) / 2, abs=0.1)


def test_either_is_a_softmax_and_both_solve_their_equation() -> None:
    logs = noise(3, 3, 2)
    torch.testing.assert_close(either(logs, 2.0), (2 * logs).softmax(dim=0))
    assert torch.equal(either(logs, 0.0), torch.full((3, 2), 1 / 3))
    eps, fields, left = noise(4, 3, 2, 24), noise(5, 3, 2, 24), 0.7
    kappa = both(logs, eps, fields, left)
    torch.testing.assert_close(kappa.sum(dim=0), torch.ones(2))
    joined = torch.einsum("nb,nbd->bd", kappa, fields)
    coming = logs + (1 - left**2) * ((eps * joined).sum(dim=2) - eps.square().sum(dim=2) / 2)
    torch.testing.assert_close(coming, coming.mean(dim=0).expand(3, 2), rtol=1e-3, atol=1e-3)


def test_both_know_no_order_and_share_equally_where_models_agree() -> None:
    logs, eps, fields = noise(3, 3, 2), noise(4, 3, 2, 24), noise(5, 3, 2, 24)
    kappa, order = both(logs, eps, fields, 0.7), [2, 0, 1]
    torch.testing.assert_close(both(logs[order], eps[order], fields[order], 0.7), kappa[order])
    same = eps[:1].expand(3, 2, 24)
    torch.testing.assert_close(both(logs, same, same, 0.7), torch.full((3, 2), 1 / 3))
