from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from diffusemble.training.levels import shifted
from diffusemble.training.schedule import process_of, shift_of
from training.small import SCHEDULE


@pytest.mark.parametrize("cls", [DDIMScheduler, DDPMScheduler, PNDMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_diffusion_is_that_of_any_scheduler_that_draws_it(cls: Any, kind: str) -> None:
    found = process_of(cls(prediction_type=kind, **SCHEDULE))
    expected = DDPMScheduler(**SCHEDULE).alphas_cumprod
    assert torch.allclose(found.alpha.square(), expected)
    assert torch.allclose(found.sigma.square(), 1 - expected, atol=1e-6)
    assert found.times.tolist() == list(range(1000))
    assert found.prediction_type == kind


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        FlowMatchHeunDiscreteScheduler(shift=3.0),
        DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
    ],
)
def test_a_flow_is_known_by_what_the_scheduler_does(scheduler: Any) -> None:
    found = process_of(scheduler)
    assert found.flows
    assert torch.allclose(found.alpha + found.sigma, torch.ones(1000))
    assert found.shift == 3


@pytest.mark.parametrize("count", [1000, 500])
def test_times_of_a_flow_are_those_that_its_scheduler_tells(count: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=count)
    found = process_of(scheduler)
    assert torch.allclose(found.times, scheduler.timesteps.flip(0))
    assert torch.allclose(found.sigma, scheduler.sigmas.flip(0))


def test_the_shift_is_that_of_the_schedulers_sigmas() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    even = torch.arange(1, 1001) / 1000
    assert torch.allclose(shifted(even, shift_of(scheduler)), scheduler.sigmas.flip(0))


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_a_shift_by_size_is_what_the_pipeline_of_flux_draws_with(kind: Any, tokens: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    mu = calculate_shift(tokens)
    scheduler.set_timesteps(sigmas=[1.0, 0.7, 0.2], mu=mu)
    expected = shifted(torch.tensor([1.0, 0.7, 0.2]), shift_of(scheduler, tokens))
    assert torch.allclose(expected, scheduler.sigmas[:3], atol=1e-6)
    assert shift_of(scheduler) == 1  # of no known size


def test_other_schedulers_are_refused() -> None:
    with pytest.raises(ValueError, match="EDMEulerScheduler has neither alphas_cumprod"):
        process_of(EDMEulerScheduler())
