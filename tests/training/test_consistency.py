from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
)
from torch import Tensor

from diffusemble.training.consistency import (
    Jump,
    Place,
    boundary,
    consistent,
    guided,
    huber_distance,
    jump_on_grid,
    solver_step,
)
from diffusemble.training.objective import Diffusion, Level, add_noise, target_of
from training.small import SCHEDULE

KINDS = ["epsilon", "v_prediction", "sample", "flow_prediction"]
NOISE_KINDS = ["epsilon", "v_prediction"]


def latents(*seeds: int) -> tuple[Tensor, ...]:
    return tuple(torch.randn(3, 4, 5, 7, generator=torch.Generator().manual_seed(seed)) for seed in seeds)


def process(kind: str, shift: float = 3.0) -> Diffusion:
    if kind == "flow_prediction":
        return Diffusion.flow(1000, shift)
    return Diffusion.preserving(DDIMScheduler(**SCHEDULE).alphas_cumprod, kind)


def place_of(diffusion: Diffusion, *points: int) -> Place:
    return Place(diffusion.at(torch.tensor(points)), diffusion.times[list(points)])


@pytest.mark.parametrize("kind", KINDS)
def test_at_time_zero_the_function_is_the_identity(kind: str) -> None:
    prediction, noisy = latents(0, 1)
    first = process(kind).at(torch.zeros(3, dtype=torch.long))
    clean = Level(torch.ones(3), torch.zeros(3))  # where a flow starts; a diffusion does so beside it
    start = Place(clean if kind == "flow_prediction" else first, torch.zeros(3))
    assert torch.equal(consistent(prediction, noisy, start, kind), noisy)


def test_the_boundary_is_that_of_the_scheduler() -> None:
    times = torch.tensor([1, 19, 999])
    skip, out = zip(*map(LCMScheduler().get_scalings_for_boundary_condition_discrete, times), strict=True)
    assert torch.allclose(boundary(times, "epsilon").skip, torch.stack(skip))
    assert torch.allclose(boundary(times, "epsilon").out, torch.stack(out))


@pytest.mark.parametrize("grid", [50, 100, 30])
def test_jumps_lie_on_the_grid_of_the_scheduler(grid: int) -> None:
    jump = jump_on_grid(torch.arange(1000), process("epsilon"), grid)
    scheduler = LCMScheduler(original_inference_steps=grid, **SCHEDULE)
    scheduler.set_timesteps(grid, original_inference_steps=grid)
    points = scheduler.timesteps.flip(0)
    assert torch.equal(jump.start.times.unique(), points)
    before = dict(zip(points.tolist(), [0, *points[:-1].tolist()], strict=True))
    assert jump.end.times.tolist() == [before[start] for start in jump.start.times.tolist()]
    assert (jump.start.times[: int(points[-1]) + 1] >= torch.arange(int(points[-1]) + 1)).all()


@pytest.mark.parametrize(("grid", "count"), [(4, 1000), (25, 1000), (30, 1000), (25, 500)])
def test_jumps_of_a_flow_lie_where_its_pipeline_draws(grid: int, count: int) -> None:
    diffusion = Diffusion.flow(count, shift=3.0)
    jump = jump_on_grid(torch.arange(count), diffusion, grid)
    scheduler = FlowMatchLCMScheduler(shift=3.0, num_train_timesteps=count)
    scheduler.set_timesteps(sigmas=[1 - step / grid for step in range(grid)])
    points = scheduler.sigmas.flip(0)  # 0 first
    assert torch.allclose(jump.start.level.sigma.unique(), points[1:], atol=1e-6)
    assert torch.allclose(jump.end.level.sigma.unique(), points[:-1], atol=1e-6)
    assert (jump.start.level.sigma > diffusion.sigma - 1e-5).all()
    assert (jump.end.level.sigma < diffusion.sigma).all()
    for place in (jump.start, jump.end):
        assert torch.equal(place.level.alpha, 1 - place.level.sigma)
        assert torch.allclose(place.times, count * place.level.sigma)
    assert torch.allclose(jump.start.times.unique(), scheduler.timesteps.flip(0))


def test_a_grid_finer_than_the_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most one point per timestep \(10\); got 11. Lower grid"):
        jump_on_grid(torch.arange(3), Diffusion.flow(10), 11)


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_the_solver_is_ddim(kind: str) -> None:
    prediction, noisy = latents(0, 1)
    scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, prediction_type=kind)
    scheduler.set_timesteps(50)
    expected = scheduler.step(prediction, 500, noisy).prev_sample
    jump = Jump(*(place_of(process(kind), point, point, point) for point in (500, 480)))
    assert torch.allclose(solver_step(prediction, noisy, jump, kind), expected, atol=1e-5)


def test_the_solver_of_a_flow_is_eulers() -> None:
    prediction, noisy = latents(0, 1)
    jump = jump_on_grid(torch.full((3,), 700), process("flow_prediction"), 20)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1 - step / 20 for step in range(20)])
    index = int((scheduler.sigmas - jump.start.level.sigma[0]).abs().argmin())
    expected = scheduler.step(prediction, scheduler.timesteps[index], noisy).prev_sample
    assert torch.allclose(solver_step(prediction, noisy, jump, "flow_prediction"), expected, atol=1e-5)


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_the_function_is_what_the_scheduler_draws_with(kind: str) -> None:
    prediction, noisy = latents(0, 1)
    scheduler = LCMScheduler(**SCHEDULE, clip_sample=False, prediction_type=kind)
    scheduler.set_timesteps(4)
    time = int(scheduler.timesteps[1])
    expected = scheduler.step(prediction, scheduler.timesteps[1], noisy, generator=torch.Generator()).denoised
    assert torch.allclose(
        consistent(prediction, noisy, place_of(process(kind), time, time, time), kind), expected, atol=1e-4
    )


def test_the_function_of_a_flow_is_what_its_scheduler_draws_with() -> None:
    prediction, noisy = latents(0, 1)
    scheduler = FlowMatchLCMScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.5])
    place = Place(Level(torch.zeros(3), torch.ones(3)), torch.full((3,), 1000.0))
    noise = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(3))
    after = scheduler.step(prediction, scheduler.timesteps[0], noisy, generator=torch.Generator().manual_seed(3))
    sigma = scheduler.sigmas[1]
    expected = (1 - sigma) * consistent(prediction, noisy, place, "flow_prediction") + sigma * noise
    assert torch.allclose(after.prev_sample, expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_teacher_and_student_agree(kind: str) -> None:
    """Where predictions are true, both ends of a jump have one clean end."""
    clean, noise = latents(0, 1)
    jump = jump_on_grid(torch.tensor([100, 500, 999]), process(kind), 50)

    def said(place: Place) -> Tensor:
        return target_of(clean, noise, place.level, kind)

    noisy = add_noise(clean, noise, jump.start.level)
    earlier = solver_step(said(jump.start), noisy, jump, kind)
    one = consistent(said(jump.start), noisy, jump.start, kind)
    other = consistent(said(jump.end), earlier, jump.end, kind)
    assert torch.allclose(earlier, add_noise(clean, noise, jump.end.level), atol=1e-5)
    assert huber_distance(one, other, 1e-3).max() < 1e-4
    assert torch.allclose(one, clean, atol=1e-3)


def test_guidance_and_distance_in_closed_form() -> None:
    one, other = torch.full((2, 1, 2, 2), 3.0), torch.ones(2, 1, 2, 2)
    assert guided(one, other, 2.5).unique().tolist() == [6.0]
    assert torch.equal(guided(one, other, 1), one)
    assert huber_distance(one, other, 1.5).tolist() == [1.0, 1.0]  # the sides 3, 4, 5 of a triangle, halved
    assert huber_distance(one, one, 1e-3).tolist() == pytest.approx([0, 0], abs=1e-9)
