from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from pydantic import ValidationError
from torch import Tensor

from diffusemble.training.chance import Chance
from diffusemble.training.levels import (
    bucket_times,
    cosmap,
    logit_normal,
    mode,
    probabilities,
    shifted,
    unshifted,
)
from diffusemble.training.loss_config import LevelsConfig
from diffusemble.training.objective import Diffusion

PLACES = torch.linspace(0, 1, 41, dtype=torch.float64)


def levels(**settings: Any) -> LevelsConfig:
    return LevelsConfig.model_validate(settings)


def share_below(drawn: Tensor) -> Tensor:
    return torch.stack([(drawn <= place).double().mean() for place in PLACES])


def test_drawing_as_diffusers_scripts_do_gives_these_densities() -> None:
    """Theirs count from much noise to little, so t is one minus what they draw."""
    generator = torch.Generator().manual_seed(0)

    def theirs(name: str, **settings: float) -> Tensor:
        wanted: dict[str, Any] = {"logit_mean": None, "logit_std": None, "mode_scale": None, **settings}
        return 1 - compute_density_for_timestep_sampling(name, 200_000, generator=generator, **wanted)

    normal = share_below(theirs("logit_normal", logit_mean=-0.5, logit_std=0.7))
    assert (normal - logit_normal(PLACES, 0.5, 0.7)).abs().max() < 0.005  # 0.001 is the standard deviation
    assert (share_below(theirs("mode", mode_scale=1.29)) - mode(PLACES, 1.29)).abs().max() < 0.005


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.8, 1.75])
def test_mode_undoes_its_formula(scale: float) -> None:
    u = torch.linspace(0, 1, 21, dtype=torch.float64)
    t = 1 - u - scale * ((math.pi * u / 2).cos().square() - 1 + u)
    assert torch.allclose(mode(t.clamp(0, 1), scale), 1 - u, atol=1e-6)
    assert torch.allclose(mode(PLACES, 0.0), PLACES, atol=1e-12)


def test_cosmap_is_the_integral_of_its_density() -> None:
    places = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    middles = (places[1:] + places[:-1]) / 2
    density = 2 / (math.pi * (1 - 2 * middles + 2 * middles.square()))
    assert torch.allclose(cosmap(places).diff(), density / 10_000, atol=1e-9)
    u = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    assert torch.allclose(cosmap(1 - 1 / ((math.pi * u / 2).tan() + 1)), u)


def test_a_shift_multiplies_the_odds_of_the_noise_and_can_be_undone() -> None:
    t = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    assert shifted(t, 3).tolist() == pytest.approx([0, 0.25, 0.75, 27 / 28, 1])
    assert torch.allclose(unshifted(shifted(t, 3), 3), t)
    assert torch.allclose(torch.logit(shifted(t[1:4], 3)), torch.logit(t[1:4]) + math.log(3))


@pytest.mark.parametrize("density", ["uniform", "logit-normal", "mode", "cosmap"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_probabilities_are_positive_and_sum_to_one(density: str, shift: float) -> None:
    found = probabilities(levels(density=density, shift=shift), Diffusion.flow(50))
    if density == "uniform" and shift == 1:
        assert found is None
        return
    assert found is not None
    assert found.shape == (50,)
    assert (found > 0).all()
    assert found.sum().item() == pytest.approx(1)
    if shift == 1:
        assert torch.allclose(found, found.flip(0))  # all four are symmetric


def test_shifting_a_logit_normal_moves_its_mean() -> None:
    moved = probabilities(levels(shift=3), Diffusion.flow(50))
    other = probabilities(levels(mean=math.log(3), shift=1), Diffusion.flow(50))
    assert moved is not None
    assert other is not None
    assert torch.allclose(moved, other)


def test_by_default_a_diffusion_is_uniform_and_a_flow_logit_normal_with_its_own_shift() -> None:
    assert probabilities(levels(), Diffusion.preserving(torch.linspace(0.99, 0.01, 50), "epsilon")) is None
    own = probabilities(levels(), Diffusion.flow(50, shift=3))
    named = probabilities(levels(density="logit-normal", shift=3), Diffusion.flow(50, shift=2))
    assert own is not None
    assert named is not None
    assert torch.equal(own, named)


def test_draws_follow_the_probabilities_within_their_range() -> None:
    odds = probabilities(levels(density="mode"), Diffusion.flow(40))
    assert odds is not None
    chance = Chance(seed=0, batch=20_000, count=10, timesteps=range(5, 30), drop=0.1, probabilities=odds)
    drawn = chance.draw(0, (1, 1, 1)).timesteps
    assert (drawn.min(), drawn.max()) == (5, 29)
    shares = torch.bincount(drawn, minlength=30)[5:] / 20_000
    assert (shares - odds[5:30] / odds[5:30].sum()).abs().max() < 0.007  # five standard deviations
    assert torch.equal(chance.draw(0, (1, 1, 1)).timesteps, drawn)


def test_a_diffusion_cannot_be_shifted() -> None:
    with pytest.raises(ValueError, match=r"levels.shift moves the levels of flow matching .* predict 'v_prediction'"):
        probabilities(levels(shift=3), Diffusion.preserving(torch.ones(5), "v_prediction"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": "mode", "mean": 1}, r"levels.mean belongs to the density 'logit-normal'; got density 'mode'"),
        ({"density": "uniform", "spread": 2}, "levels.spread belongs to the density 'logit-normal'"),
        ({"scale": 0.5}, r"levels.scale belongs to the density 'mode'; got density 'of the experts \(none is named\)'"),
        ({"density": "mode", "scale": 2}, "less than or equal to 1.75"),
    ],
)
def test_options_of_another_density_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        levels(**settings)


def test_every_bucket_gets_a_timestep_of_its_range() -> None:
    times = bucket_times(50, 7, 1000, torch.Generator().manual_seed(0))
    edges = [bucket * 1000 // 7 for bucket in range(8)]
    assert times.shape == (50, 7)
    for bucket in range(7):
        assert times[:, bucket].min() >= edges[bucket]
        assert times[:, bucket].max() < edges[bucket + 1]
        assert len(times[:, bucket].unique()) > 10


def test_more_buckets_than_timesteps_are_refused() -> None:
    with pytest.raises(ValueError, match="There are 5 timesteps, so at most as many buckets; got 6"):
        bucket_times(1, 6, 5, torch.Generator())
