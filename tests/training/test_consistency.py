from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor

from diffusemble.training.consistency import (
    boundary,
    clean_and_noise,
    consistent,
    guided,
    huber_distance,
    jump_on_grid,
    solver_step,
)
from diffusemble.training.objective import Level, add_noise, target_of
from training.small import SCHEDULE

KINDS = ["epsilon", "v_prediction"]


def level_of(alphas: Tensor) -> Level:
    return Level(alphas.sqrt(), (1 - alphas).sqrt())


def latents(*seeds: int) -> tuple[Tensor, ...]:
    return tuple(torch.randn(3, 4, 5, 7, generator=torch.Generator().manual_seed(seed)) for seed in seeds)


def test_at_time_zero_the_function_is_the_identity() -> None:
    prediction, noisy = latents(0, 1)
    times = torch.zeros(3, dtype=torch.long)
    assert torch.equal(consistent(prediction, noisy, times, torch.full((3,), 0.9), "epsilon"), noisy)
    at = boundary(times)
    assert at.skip.tolist() == [1, 1, 1]
    assert at.out.tolist() == [0, 0, 0]


def test_the_boundary_is_that_of_the_scheduler() -> None:
    times = torch.tensor([1, 19, 999])
    skip, out = zip(*map(LCMScheduler().get_scalings_for_boundary_condition_discrete, times), strict=True)
    assert torch.allclose(boundary(times).skip, torch.stack(skip))
    assert torch.allclose(boundary(times).out, torch.stack(out))


@pytest.mark.parametrize("grid", [50, 100, 30])
def test_jumps_lie_on_the_grid_of_the_scheduler(grid: int) -> None:
    jump = jump_on_grid(torch.arange(1000), 1000, grid)
    scheduler = LCMScheduler(original_inference_steps=grid, **SCHEDULE)
    scheduler.set_timesteps(grid, original_inference_steps=grid)
    points = scheduler.timesteps.flip(0)
    assert torch.equal(jump.start.unique(), points)
    before = dict(zip(points.tolist(), [0, *points[:-1].tolist()], strict=True))
    assert jump.end.tolist() == [before[start] for start in jump.start.tolist()]
    assert (jump.start[: int(points[-1]) + 1] >= torch.arange(int(points[-1]) + 1)).all()


def test_a_grid_finer_than_the_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most one point per timestep \(10\); got 11. Lower grid"):
        jump_on_grid(torch.arange(3), 10, 11)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_say_what_they_were_made_from(kind: str) -> None:
    clean, noise = latents(0, 1)
    alphas = torch.tensor([0.9, 0.5, 0.1])
    noisy = add_noise(clean, noise, level_of(alphas))
    prediction = target_of(clean, noise, level_of(alphas), kind)
    said = clean_and_noise(prediction, noisy, alphas, kind)
    assert torch.allclose(said[0], clean, atol=1e-5)
    assert torch.allclose(said[1], noise, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_solver_is_ddim(kind: str) -> None:
    prediction, noisy = latents(0, 1)
    scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, prediction_type=kind)
    scheduler.set_timesteps(50)
    start = torch.full((3,), 500)
    expected = scheduler.step(prediction, 500, noisy).prev_sample
    alphas = scheduler.alphas_cumprod
    assert torch.allclose(solver_step(prediction, noisy, alphas[start], alphas[start - 20], kind), expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_function_is_what_the_scheduler_draws_with(kind: str) -> None:
    prediction, noisy = latents(0, 1)
    scheduler = LCMScheduler(**SCHEDULE, clip_sample=False, prediction_type=kind)
    scheduler.set_timesteps(4)
    time = scheduler.timesteps[1]
    expected = scheduler.step(prediction, time, noisy, generator=torch.Generator()).denoised
    alphas = scheduler.alphas_cumprod[time].expand(3)
    assert torch.allclose(consistent(prediction, noisy, time.expand(3), alphas, kind), expected, atol=1e-4)


def test_a_perfect_teacher_and_student_agree() -> None:
    """Where predictions are true, both ends of a jump have one clean end."""
    clean, noise = latents(0, 1)
    alphas = DDIMScheduler(**SCHEDULE).alphas_cumprod
    jump = jump_on_grid(torch.tensor([100, 500, 999]), 1000, 50)
    noisy = add_noise(clean, noise, level_of(alphas[jump.start]))
    earlier = solver_step(noise, noisy, alphas[jump.start], alphas[jump.end], "epsilon")
    one = consistent(noise, noisy, jump.start, alphas[jump.start], "epsilon")
    other = consistent(noise, earlier, jump.end, alphas[jump.end], "epsilon")
    assert torch.allclose(earlier, add_noise(clean, noise, level_of(alphas[jump.end])), atol=1e-5)
    assert huber_distance(one, other, 1e-3).max() < 1e-4


def test_guidance_and_distance_in_closed_form() -> None:
    one, other = torch.full((2, 1, 2, 2), 3.0), torch.ones(2, 1, 2, 2)
    assert guided(one, other, 2.5).unique().tolist() == [6.0]
    assert torch.equal(guided(one, other, 1), one)
    assert huber_distance(one, other, 1.5).tolist() == [1.0, 1.0]  # the sides 3, 4, 5 of a triangle, halved
    assert huber_distance(one, one, 1e-3).tolist() == pytest.approx([0, 0], abs=1e-9)
