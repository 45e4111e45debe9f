from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from diffusemble.training.objective import (
    Batch,
    Diffusion,
    Level,
    add_noise,
    prediction_error,
    squared_error,
    target_of,
)
from training.small import SCHEDULE

KINDS = ("epsilon", "v_prediction", "sample", "flow_prediction")


def batch(size: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, size, 4, 5, 7, generator=generator)
    return Batch(latents, noise, torch.tensor([0, 500, 999])[:size], {"encoder_hidden_states": torch.zeros(size, 2, 6)})


def process(kind: str) -> Diffusion:
    if kind == "flow_prediction":
        return Diffusion.flow(1000)
    return Diffusion.preserving(DDPMScheduler(**SCHEDULE).alphas_cumprod, kind)


def test_noise_and_velocity_of_a_diffusion_agree_with_diffusers() -> None:
    scheduler, given = DDPMScheduler(**SCHEDULE), batch()
    level = process("v_prediction").at(given.timesteps)
    arguments = (given.latents, given.noise, given.timesteps)
    assert torch.allclose(add_noise(given.latents, given.noise, level), scheduler.add_noise(*arguments))
    velocity = target_of(given.latents, given.noise, level, "v_prediction")
    assert torch.allclose(velocity, scheduler.get_velocity(*arguments))


def test_noise_of_a_flow_agrees_with_diffusers() -> None:
    scheduler, given, diffusion = FlowMatchEulerDiscreteScheduler(), batch(), Diffusion.flow(1000)
    times = diffusion.times[given.timesteps]
    expected = scheduler.scale_noise(given.latents, times, given.noise)
    assert torch.allclose(add_noise(given.latents, given.noise, diffusion.at(given.timesteps)), expected)
    assert torch.allclose(diffusion.times, scheduler.timesteps.flip(0))
    assert torch.allclose(diffusion.sigma, scheduler.sigmas.flip(0))


@pytest.mark.parametrize("kind", ["v_prediction", "flow_prediction"])
def test_a_velocity_leads_along_the_path(kind: str) -> None:
    """u = dx/dσ; v = dx/dφ for α = cos φ, σ = sin φ."""
    given, at, step = batch(1), torch.tensor([0.4], dtype=torch.float64), 1e-6
    latents, noise = given.latents.double(), given.noise.double()

    def level(place: Tensor) -> Level:
        return Level(1 - place, place) if kind == "flow_prediction" else Level(place.cos(), place.sin())

    ahead, behind = (add_noise(latents, noise, level(at + sign * step)) for sign in (1, -1))
    said = target_of(latents, noise, level(at), kind)
    assert torch.allclose((ahead - behind) / (2 * step), said, atol=1e-8)


def test_one_step_along_a_flow_arrives() -> None:
    """x = x_σ - σ u, and the Euler step of diffusers' scheduler goes there."""
    given, diffusion = batch(), Diffusion.flow(1000)
    level = diffusion.at(given.timesteps)
    noisy = add_noise(given.latents, given.noise, level)
    said = target_of(given.latents, given.noise, level, "flow_prediction")
    assert torch.allclose(noisy - level.sigma.view(-1, 1, 1, 1) * said, given.latents, atol=1e-5)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.6])
    start, u = given.noise, given.noise - given.latents
    for time in scheduler.timesteps:
        start = scheduler.step(u, time, start, return_dict=False)[0]
    assert torch.allclose(start, given.latents, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_prediction_has_no_error_and_an_offset_its_square(kind: str) -> None:
    given, diffusion = batch(), process(kind)
    level = diffusion.at(given.timesteps)
    aim, offset, seen = target_of(given.latents, given.noise, level, kind), torch.tensor([0.0, 1.0, 2.0]), {}

    def denoise(noisy: Tensor, times: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        seen.update(noisy=noisy, times=times, inputs=inputs)
        return aim + offset.view(-1, 1, 1, 1)

    assert torch.allclose(prediction_error(denoise, given, diffusion), offset.square(), atol=1e-5)
    assert torch.equal(seen["noisy"], add_noise(given.latents, given.noise, level))
    assert seen["times"].tolist() == ([1, 501, 1000] if kind == "flow_prediction" else [0, 500, 999])
    assert seen["inputs"] is given.inputs


def test_the_error_is_taken_in_float32() -> None:
    prediction = torch.full((1, 1, 8, 8), 300.0, dtype=torch.float16)  # its square does not fit into float16
    assert squared_error(prediction, torch.zeros_like(prediction)).item() == 90_000


def test_other_prediction_types_are_refused() -> None:
    with pytest.raises(ValueError, match="'sample' or 'flow_prediction'; their scheduler says 'score'"):
        Diffusion.preserving(torch.ones(5), "score")
