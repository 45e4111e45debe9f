"""Paths of latents: time and signal-to-noise ratio, and a denoiser asked on a path that is not its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from diffusemble.parametrisation.kinds import Prediction, coefficients
from diffusemble.parametrisation.paths import Flow, Path, Terms, VariancePreserving, predict_in

KINDS = get_args(Prediction)
CLOSE = {"rtol": 1e-12, "atol": 1e-12}
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def table(**config: Any) -> Tensor:
    return DDIMScheduler(**{**SD, **config}).alphas_cumprod


STABLE = VariancePreserving(table())
ZERO = VariancePreserving(table(rescale_betas_zero_snr=True))
LINEAR = VariancePreserving(table(beta_schedule="linear", beta_start=0.0001, beta_end=0.02))
PATHS: dict[str, Path] = {"stable": STABLE, "zero terminal SNR": ZERO, "linear": LINEAR, "flow": Flow(1000)}


def values(seed: int) -> Tensor:
    return torch.randn(4, 3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


CLEAN, NOISE = values(1), values(2)


def over(path: Path, times: Tensor) -> tuple[Tensor, Tensor]:
    point = path.point(times)
    return point.alpha.view(-1, 1, 1, 1), point.sigma.view(-1, 1, 1, 1)


def knowing(path: Path, kind: Prediction, asked: list[Tensor] | None = None) -> Callable[[Tensor, Any], Tensor]:
    """A denoiser that knows the picture: what it says is true wherever it is asked with the picture's own latents."""

    def predict(sample: Tensor, time: Any) -> Tensor:
        alpha, sigma = over(path, torch.as_tensor(time).double().reshape(-1).expand(len(sample)))
        torch.testing.assert_close(sample, alpha * CLEAN + sigma * NOISE, rtol=1e-10, atol=1e-10)
        a, b = coefficients(alpha, sigma, kind)
        if asked is not None:
            asked.append(torch.as_tensor(time))
        return a * CLEAN + b * NOISE

    return predict


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_time_and_ratio_are_inverse(path: Path) -> None:
    times = torch.cat([torch.arange(1, 999, dtype=torch.float64), torch.linspace(0.3, 998.7, 501, dtype=torch.float64)])
    point = path.point(times)
    torch.testing.assert_close(path.time(point.ratio), times, rtol=1e-11, atol=1e-9)
    again = path.point(path.time(point.ratio))
    torch.testing.assert_close(again.alpha, point.alpha, **CLOSE)
    torch.testing.assert_close(again.sigma, point.sigma, **CLOSE)
    assert (point.ratio.sort().values.diff() >= 0).all()


@pytest.mark.parametrize("path", [STABLE, ZERO, LINEAR], ids=["stable", "zero", "linear"])
def test_variance_is_preserved_at_whole_and_broken_times(path: VariancePreserving) -> None:
    torch.testing.assert_close(path.point(torch.linspace(0, 999, 3001)).size, torch.ones(3001).double(), **CLOSE)


def test_whole_times_are_the_table() -> None:
    for path, bars in ((STABLE, table()), (ZERO, table(rescale_betas_zero_snr=True))):
        point = path.point(torch.arange(1000))
        torch.testing.assert_close(point.alpha**2, bars.double(), **CLOSE)
        torch.testing.assert_close(point.sigma**2, 1 - bars.double(), rtol=1e-12, atol=1e-12)


def test_zero_terminal_snr_ends_in_pure_noise_and_rises_evenly_from_there() -> None:
    last = ZERO.point(torch.tensor([998.0, 998.25, 998.5, 999.0]))
    assert (float(last.alpha[3]), float(last.sigma[3])) == (0, 1)
    share = last.alpha / last.sigma
    torch.testing.assert_close(share / share[0], torch.tensor([1, 0.75, 0.5, 0]).double(), **CLOSE)
    assert float(ZERO.time(torch.tensor([math.inf]))) == 999


def test_broken_times_are_those_of_karras_sampling() -> None:
    """Euler with Karras' noise levels tells the denoiser the broken time whose level it is at."""
    euler = EulerDiscreteScheduler(**SD, use_karras_sigmas=True)
    euler.set_timesteps(20)
    sigmas = euler.sigmas[:-1].double()
    torch.testing.assert_close(STABLE.time(sigmas.log()), euler.timesteps.double(), rtol=1e-4, atol=1e-3)


def test_beyond_its_ends_a_path_stays_at_them() -> None:
    assert STABLE.time(torch.tensor([-math.inf, math.inf])).tolist() == [0, 999]
    ends = STABLE.point(torch.tensor([-3.0, 5000.0]))
    assert torch.equal(ends.alpha, STABLE.point(torch.tensor([0, 999])).alpha)


def test_flow_is_a_straight_line() -> None:
    point = Flow(200).point(torch.tensor([0, 50, 200]))
    assert point.alpha.tolist() == [1, 0.75, 0]
    assert point.sigma.tolist() == [0, 0.25, 1]
    assert Flow(200).time(torch.tensor([-math.inf, 0.0, math.inf])).tolist() == [0, 100, 200]


@pytest.mark.parametrize("shift", [1.0, 3.0, 1.15])
def test_a_shift_adds_its_logarithm_to_the_ratio_and_stays_on_the_path(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    point = Flow(1000).point(scheduler.timesteps)
    torch.testing.assert_close(point.sigma.float(), scheduler.sigmas)
    plain = Flow(1000).point(torch.arange(1000, 0, -1))
    torch.testing.assert_close(point.ratio[1:], plain.ratio[1:] + math.log(shift), rtol=1e-4, atol=1e-4)


def test_equal_paths_are_equal() -> None:
    assert VariancePreserving(table()) == STABLE
    assert hash(VariancePreserving(table())) == hash(STABLE)
    assert len({STABLE, ZERO, LINEAR, Flow(1000), Flow(1000), Flow(10)}) == 5
    assert Flow(1000) != STABLE


@pytest.mark.parametrize("bars", [[0.9], [1.0, 0.5], [0.5, 0.5], [0.5, -0.1], [0.2, 0.7]])
def test_what_is_no_schedule_is_refused(bars: list[float]) -> None:
    with pytest.raises(ValueError, match=r"at least two ᾱ that fall from below 1 to 0.*Check the betas"):
        VariancePreserving(torch.tensor(bars))


# -- asked on another path ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other"), list(itertools.product(PATHS, PATHS)))
@pytest.mark.parametrize(("kind", "into"), list(itertools.product(KINDS, KINDS)))
def test_who_knows_the_picture_tells_it_in_all_terms(one: str, other: str, kind: Prediction, into: Prediction) -> None:
    ours, theirs = Terms(PATHS[one], into), Terms(PATHS[other], kind)
    times = theirs.path.time(ours.path.point(torch.tensor([70.0, 333.3, 600.5, 900.0])).ratio)
    times = ours.path.time(theirs.path.point(times).ratio)  # where both can go
    alpha, sigma = over(ours.path, times)
    told = predict_in(ours, theirs, knowing(theirs.path, kind), alpha * CLEAN + sigma * NOISE, times)
    a, b = coefficients(alpha, sigma, into)
    torch.testing.assert_close(told, a * CLEAN + b * NOISE, rtol=1e-10, atol=1e-10)


def test_latents_are_scaled_by_the_ratio_of_what_is_kept_of_the_picture() -> None:
    seen: list[Tensor] = []

    def predict(sample: Tensor, time: Any) -> Tensor:
        seen.extend((sample, time))
        return sample

    times = torch.tensor([500.0] * 4)
    predict_in(Terms(STABLE, "epsilon"), Terms(Flow(1000), "epsilon"), predict, CLEAN, times)
    here, there = STABLE.point(times), Flow(1000).point(seen[1])
    torch.testing.assert_close(there.sigma / there.alpha, here.sigma / here.alpha, **CLOSE)
    torch.testing.assert_close(seen[0], CLEAN * (there.alpha / here.alpha).view(-1, 1, 1, 1), **CLOSE)


@pytest.mark.parametrize("time", [500, torch.tensor(500), torch.tensor([7, 300, 500, 999])])
@pytest.mark.parametrize("kind", KINDS)
def test_in_equal_terms_nothing_is_touched(time: Any, kind: Prediction) -> None:
    terms = Terms(STABLE, kind)
    found = predict_in(
        terms, Terms(VariancePreserving(table()), kind), lambda x, t: x if t is time else -x, NOISE, time
    )
    assert found is NOISE


def test_on_an_equal_path_the_time_stays_as_it_is() -> None:
    time = torch.tensor(500)
    asked: list[Any] = []

    def predict(sample: Tensor, given: Any) -> Tensor:
        asked.append(given)
        return sample

    predict_in(Terms(STABLE, "v_prediction"), Terms(STABLE, "epsilon"), predict, NOISE, time)
    assert asked[0] is time


@pytest.mark.parametrize("into", KINDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", PATHS)
@pytest.mark.parametrize("one", PATHS)
def test_at_both_ends_everything_is_finite(one: str, other: str, kind: Prediction, into: Prediction) -> None:
    ends = torch.tensor([0.0, 0.0, 999.0, 999.0]) * (1000 / 999 if one == "flow" else 1)
    sample = torch.where(ends.view(-1, 1, 1, 1) > 0, NOISE, CLEAN)
    told = predict_in(Terms(PATHS[one], into), Terms(PATHS[other], kind), lambda x, t: 0.5 * x, sample, ends)
    assert told.isfinite().all()


def test_beyond_its_path_an_expert_is_asked_at_the_end_of_it() -> None:
    """At pure noise, v is -x₀: that of the noisiest latents the expert knows, of the same noise."""
    asked: list[Any] = []

    def predict(sample: Tensor, time: Any) -> Tensor:
        asked.append(time)
        return 0.9 * sample

    time = torch.tensor([999.0] * 4)
    told = predict_in(Terms(ZERO, "v_prediction"), Terms(STABLE, "epsilon"), predict, NOISE, time)
    alpha, sigma = over(STABLE, time)
    assert asked[0].tolist() == [999.0] * 4
    torch.testing.assert_close(told, -(NOISE - sigma * 0.9 * NOISE) / alpha, **CLOSE)


def test_half_precision_is_computed_in_full() -> None:
    sample, times = NOISE.half(), torch.tensor([900.0] * 4)

    def predict(sample: Tensor, time: Tensor) -> Tensor:
        assert (sample.dtype, time.dtype) == (torch.float16, torch.float32)
        return 0.9 * sample

    told = predict_in(Terms(STABLE, "v_prediction"), Terms(Flow(1000), "epsilon"), predict, sample, times)
    exact = predict_in(
        Terms(STABLE, "v_prediction"), Terms(Flow(1000), "epsilon"), lambda x, t: 0.9 * x, NOISE.half().double(), times
    )
    assert told.dtype == torch.float16
    torch.testing.assert_close(told.double(), exact, rtol=5e-3, atol=1e-2)
