from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusemble.aggregators.recording import record_attention
from diffusemble.experts.expert import Expert
from diffusemble.training.config import ObjectiveConfig
from diffusemble.training.objective import prediction_error
from diffusemble.training.routing import (
    divergence_from_mean,
    imbalance,
    missing_entropy,
    objective_of,
    routing_terms,
)
from training.test_learner import learner

TERMS = {"entropy": missing_entropy, "pull": divergence_from_mean, "balance": imbalance}


def equal(n: int = 3) -> Tensor:
    return torch.full((2, n, 4, 5), 1 / n)


def one_hot(n: int = 3) -> Tensor:
    maps = torch.zeros(2, n, 4, 5)
    maps[:, 1] = 1
    return maps


def softmaxed(seed: int = 0, n: int = 3) -> Tensor:
    return torch.randn(2, n, 4, 5, generator=torch.Generator().manual_seed(seed)).softmax(dim=1)


@pytest.mark.parametrize("term", TERMS.values())
@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_equal_shares_cost_nothing_and_others_something(term: Any, n: int) -> None:
    assert torch.allclose(term(equal(n)), torch.zeros(()), atol=1e-6)
    if n > 1:
        assert (term(softmaxed(n=n)) > 1e-4).all()


def test_one_expert_for_everything_costs_most() -> None:
    assert torch.allclose(missing_entropy(one_hot()), torch.ones(2))
    assert imbalance(one_hot()).item() == pytest.approx(1)
    assert (divergence_from_mean(one_hot()) > 40).all()  # finite, though log 0 is not
    assert divergence_from_mean(one_hot()).isfinite().all()


def test_the_terms_of_two_experts_in_closed_form() -> None:
    p = 0.8
    maps = torch.tensor([p, 1 - p]).view(1, 2, 1, 1).expand(3, 2, 4, 5)
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert missing_entropy(maps).tolist() == pytest.approx([1 - entropy / math.log(2)] * 3, rel=1e-5)
    assert imbalance(maps).item() == pytest.approx(1 - entropy / math.log(2), rel=1e-5)
    assert divergence_from_mean(maps).tolist() == pytest.approx([-math.log(2 * math.sqrt(p * (1 - p)))] * 3, rel=1e-5)


def test_one_hot_maps_are_balanced_when_everybody_has_a_turn() -> None:
    maps = torch.zeros(3, 3, 4, 5)
    for number in range(3):
        maps[number, number] = 1
    assert imbalance(maps).item() == pytest.approx(0, abs=1e-6)
    assert missing_entropy(maps).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("term", TERMS.values())
def test_experts_are_interchangeable(term: Any) -> None:
    maps = softmaxed()
    assert torch.allclose(term(maps), term(maps[:, [2, 0, 1]]), atol=1e-6)


def test_the_pull_does_not_fade_at_one_hot_maps_as_the_entropy_does() -> None:
    logits = torch.tensor([12.0, 0.0, 0.0]).view(1, 3, 1, 1).requires_grad_()
    (pull,) = torch.autograd.grad(divergence_from_mean(logits.softmax(dim=1)).sum(), logits)
    (entropy,) = torch.autograd.grad(missing_entropy(logits.softmax(dim=1)).sum(), logits)
    assert pull.flatten().tolist() == pytest.approx((logits.softmax(1) - 1 / 3).flatten().tolist(), abs=1e-5)
    assert entropy.abs().max() < 1e-3


def test_terms_are_averaged_over_points_and_weighted() -> None:
    maps = [softmaxed(0), softmaxed(1)]
    found = routing_terms(maps, ObjectiveConfig(entropy=0.5, balance=2.0))
    expected = sum(0.5 * missing_entropy(one) + 2 * imbalance(one) for one in maps) / 2
    assert found.shape == (2,)
    assert torch.allclose(found, expected)


def test_without_options_the_objective_is_that_of_the_paper(experts: tuple[Expert, ...], pictures: Path) -> None:
    run = learner(experts, pictures)
    plain = learner(experts, pictures, prediction_error)
    run.objective = objective_of(run.config.objective, run.ensemble)
    assert [run.advance(step).loss for step in range(2)] == [plain.advance(step).loss for step in range(2)]


@pytest.mark.parametrize("term", TERMS)
def test_gradients_of_the_terms_reach_the_aggregator_alone(
    experts: tuple[Expert, ...], pictures: Path, term: str
) -> None:
    run = learner(experts, pictures)
    for step in range(2):  # away from the mean, where every term is at its minimum
        run.advance(step)
    batch = run._batch(run.chance.draw(9, run.corpus.shape))
    with record_attention(run.ensemble, detach=False) as maps:
        prediction_error(run.denoise_with(run.ensemble), batch, run.diffusion)
    routing_terms(
        [one for calls in maps.calls for one in calls], ObjectiveConfig.model_validate({term: 1})
    ).sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in run.weights)
    assert sum(weight.grad.abs().sum() for weight in run.weights if weight.grad is not None) > 0
    assert all(weight.grad is None for weight in run.ensemble.denoisers.parameters())


@pytest.mark.parametrize("term", TERMS)
def test_recorded_maps_are_those_of_the_prediction(experts: tuple[Expert, ...], pictures: Path, term: str) -> None:
    """The whole objective: the error, and the term of the maps behind it."""
    run = learner(experts, pictures)
    for step in range(2):
        run.advance(step)
    batch = run._batch(run.chance.draw(9, run.corpus.shape))
    config = ObjectiveConfig.model_validate({term: 0.3})
    with torch.no_grad():
        found = objective_of(config, run.ensemble)(run.denoise_with(run.ensemble), batch, run.diffusion)
        with record_attention(run.ensemble) as maps:
            error = prediction_error(run.denoise_with(run.ensemble), batch, run.diffusion)
        recorded = [TERMS[term](one) for calls in maps.calls for one in calls]
        expected = error + 0.3 * torch.stack(recorded).mean(dim=0)
    assert torch.allclose(found, expected, atol=1e-6)
