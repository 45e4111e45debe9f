"""Levels of schedulers, proved with a denoiser that knows the picture; who is accepted, and who is refused why."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from diffusemble.latent.base import Level
from diffusemble.latent.predictions import told
from diffusemble.latent.schedules import (
    check_scheduler,
    levels,
    prediction_kind,
    schedule_difference,
    training_beta,
)
from tests.latent.members import noise

SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CLEAN: dict[str, Any] = {**SD, "clip_sample": False}
FLOW: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}


def unipc(**changes: Any) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(**SD, disable_corrector=list(range(50)), **changes)


DETERMINISTIC: dict[str, Callable[[], Any]] = {
    "ddim": lambda: DDIMScheduler(**CLEAN, steps_offset=1, set_alpha_to_one=False),
    "ddim trailing": lambda: DDIMScheduler(**CLEAN, timestep_spacing="trailing"),
    "ddim linspace": lambda: DDIMScheduler(**CLEAN, timestep_spacing="linspace"),
    "ddim velocity": lambda: DDIMScheduler(**CLEAN, prediction_type="v_prediction"),
    "ddim clipping": lambda: DDIMScheduler(**SD, prediction_type="sample"),
    "ddim from pure noise": lambda: DDIMScheduler(
        **CLEAN, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    ),
    "pndm": lambda: PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1),
    "dpm++": lambda: DPMSolverMultistepScheduler(**SD),
    "dpm++ order 3, karras": lambda: DPMSolverMultistepScheduler(**SD, solver_order=3, use_karras_sigmas=True),
    "dpm++ velocity": lambda: DPMSolverMultistepScheduler(**SD, prediction_type="v_prediction"),
    "dpm++ flow": lambda: DPMSolverMultistepScheduler(**FLOW),
    "unipc": unipc,
    "euler": lambda: EulerDiscreteScheduler(**SD),
    "euler trailing, karras": lambda: EulerDiscreteScheduler(**SD, timestep_spacing="trailing", use_karras_sigmas=True),
    "euler velocity": lambda: EulerDiscreteScheduler(**SD, prediction_type="v_prediction"),
    "flow": lambda: FlowMatchEulerDiscreteScheduler(),
    "flow shifted": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow, shifted by size": lambda: FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
}
STOCHASTIC: dict[str, Callable[[], Any]] = {
    "ddpm": lambda: DDPMScheduler(**CLEAN),
    "ddpm velocity": lambda: DDPMScheduler(**CLEAN, prediction_type="v_prediction", timestep_spacing="trailing"),
    "euler ancestral": lambda: EulerAncestralDiscreteScheduler(**SD),
    "dpm++ sde": lambda: DPMSolverMultistepScheduler(**SD, algorithm_type="sde-dpmsolver++"),
    "lcm": lambda: LCMScheduler(**CLEAN),
    "tcd": lambda: TCDScheduler(**CLEAN),
}


def ready(scheduler: Any, steps: int) -> Any:
    scheduler.set_timesteps(steps, **({"mu": 0.8} if scheduler.config.get("use_dynamic_shifting") else {}))
    return scheduler


def draw(scheduler: Any, clean: Tensor, eps: Tensor) -> list[tuple[Tensor, Tensor, Level, Level]]:
    """Draw with a denoiser that knows ``clean``: latents before and after every step, and the levels named."""
    generator = torch.Generator().manual_seed(0)
    takes = "generator" in scheduler.step.__code__.co_varnames
    known, kind = [], prediction_kind(scheduler)
    x = None
    for timestep in scheduler.timesteps:
        before, after = levels(scheduler, timestep)
        x = before.alpha * clean + before.sigma * eps if x is None else x
        found = eps if before.sigma == 0 else (x - before.alpha * clean) / before.sigma
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, timestep)
        more = {"generator": generator} if takes else {}
        stepped = scheduler.step(told(found, clean, before, kind), timestep, x, **more, return_dict=False)[0]
        known.append((x, stepped, before, after))
        x = stepped
    return known


@pytest.mark.parametrize("steps", [4, 11])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_steps_of_an_exact_denoiser_end_at_the_level_after(name: str, steps: int) -> None:
    """x = α x₀ + σ ε with the ε that the step started from: nothing else is in a deterministic step."""
    clean = noise(3, 1, 4, 6, 5).clamp(-1, 1)
    for x, stepped, before, after in draw(ready(DETERMINISTIC[name](), steps), clean, noise(4, 1, 4, 6, 5)):
        eps = (x - before.alpha * clean) / before.sigma
        expected = after.alpha * clean + after.sigma * eps
        assert float((stepped - expected).abs().max()) < 2e-4 * max(1.0, float(x.abs().max()))


@pytest.mark.parametrize("steps", [4, 11])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_steps_that_draw_noise_end_at_the_level_after(name: str, steps: int) -> None:
    """The picture is there in full, and the noise has the level's deviation."""
    clean = torch.full((1, 1, 150, 150), 0.5)
    for _, stepped, _, after in draw(ready(STOCHASTIC[name](), steps), clean, noise(4, *clean.shape)):
        size = (after.alpha**2 + after.sigma**2) ** 0.5
        rest = stepped - after.alpha * clean
        assert abs(float(rest.mean())) < 0.03 * size
        assert abs(float(rest.std()) - after.sigma) < 0.04 * size


@pytest.mark.parametrize("name", [*DETERMINISTIC, *STOCHASTIC])
def test_levels_begin_with_noise_fall_and_follow_each_other(name: str) -> None:
    scheduler = ready({**DETERMINISTIC, **STOCHASTIC}[name](), 7)
    known = draw(scheduler, torch.full((1, 1, 9, 8), 0.5), noise(4, 1, 1, 9, 8))
    ratios = [before.sigma / max(before.alpha, 1e-9) for _, _, before, _ in known]
    assert ratios[0] > 4
    assert all(a >= b for a, b in itertools.pairwise(ratios))
    assert known[-1][3].sigma < 0.1
    # DDIM's stride is rounded down, so at 7 steps it may aim at a neighbour of the next timestep.
    loose = {"abs": 0.2 if name.startswith("ddim") else 1e-6}
    for (_, _, _, after), (_, _, before, _) in itertools.pairwise(known):
        assert (after.alpha, after.sigma) == pytest.approx((before.alpha, before.sigma), **loose)


@pytest.mark.parametrize("name", ["ddim", "dpm++", "euler", "flow shifted"])
def test_adding_noise_leads_to_the_level_before(name: str) -> None:
    """What image to image starts from is where ``levels`` says that the step starts from."""
    scheduler = ready(DETERMINISTIC[name](), 8)
    clean, eps, timestep = noise(3, 1, 4, 6, 5), noise(4, 1, 4, 6, 5), scheduler.timesteps[3:4]
    add = getattr(scheduler, "scale_noise", None)
    noised = add(clean, timestep, eps) if add else scheduler.add_noise(clean, eps, timestep)
    before, _ = levels(scheduler, timestep[0])
    torch.testing.assert_close(noised, before.alpha * clean + before.sigma * eps, rtol=1e-4, atol=1e-5)


def test_a_pipeline_that_starts_on_the_way_counts_from_there() -> None:
    scheduler = ready(EulerDiscreteScheduler(**SD), 8)
    scheduler.set_begin_index(5)
    before, after = levels(scheduler, scheduler.timesteps[5])
    assert (before.sigma, after.sigma) == (float(scheduler.sigmas[5]), float(scheduler.sigmas[6]))


# -- Who is accepted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DETERMINISTIC, *STOCHASTIC])
def test_these_are_accepted_and_left_as_they_were(name: str) -> None:
    scheduler = {**DETERMINISTIC, **STOCHASTIC}[name]()
    generator = torch.get_rng_state()
    check_scheduler(scheduler, "latents")
    check_scheduler(scheduler, "prediction")
    assert getattr(scheduler, "num_inference_steps", None) is None
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
def test_several_calls_per_step_are_refused(name: str) -> None:
    scheduler = getattr(diffusers, name)()
    with pytest.raises(ValueError, match=rf"{name} calls the denoiser several times.*DDIM, DPM-Solver\+\+ or Euler"):
        check_scheduler(scheduler)


def test_the_first_phase_of_pndm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"PNDMScheduler calls.*skip_prk_steps=True"):
        check_scheduler(PNDMScheduler(**SD))


@pytest.mark.parametrize("name", ["IPNDMScheduler", "EDMEulerScheduler", "CMStochasticIterativeScheduler"])
def test_unknown_families_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} is of no known family.*Use one of DDIM"):
        check_scheduler(getattr(diffusers, name)())


def test_schedulers_that_start_from_latents_of_their_own_are_refused_for_latents_alone() -> None:
    for scheduler, count in ((UniPCMultistepScheduler(**SD), 8), (DPMSolverSinglestepScheduler(**SD), 4)):
        check_scheduler(scheduler, "prediction")
        name = type(scheduler).__name__
        with pytest.raises(ValueError, match=rf"{name} starts {count} of 10 steps.*lost.*set disable_corrector"):
            check_scheduler(scheduler, "latents")
    # PNDM takes its first step twice from the first latents. Predicted noise tells the second of the exchange;
    # velocity, nearly the picture there, does not.
    with pytest.raises(ValueError, match=r"PNDMScheduler starts 1 of 11 steps"):
        check_scheduler(PNDMScheduler(**SD, skip_prk_steps=True, prediction_type="v_prediction"))
    few = ready(UniPCMultistepScheduler(**SD, disable_corrector=[0, 1, 2, 3]), 4)
    check_scheduler(few, "latents")


def test_unknown_predictions_are_refused() -> None:
    scheduler = DDIMScheduler(**CLEAN)
    scheduler.register_to_config(prediction_type="score")
    with pytest.raises(ValueError, match=r"if they predict epsilon, .*DDIMScheduler takes 'score'"):
        check_scheduler(scheduler)


def test_levels_that_are_not_true_are_refused() -> None:
    """A learned-variance sampler adds more noise than a fixed level keeps."""
    with pytest.raises(ValueError, match=r"DDPMScheduler leaves latents \d+% off .* at step \d+ of 10"):
        check_scheduler(DDPMScheduler(**CLEAN, variance_type="fixed_large"))


def test_schedulers_that_cannot_be_tried_are_refused() -> None:
    with pytest.raises(ValueError, match=r"CogVideoXDPMScheduler could not take 10 steps.*TypeError.*Use another"):
        check_scheduler(diffusers.CogVideoXDPMScheduler())


# -- Whose latents may meet --------------------------------------------------------------------------------------------


def test_equal_schedules_do_not_differ_whoever_runs_them() -> None:
    ddim, ddpm = DDIMScheduler(**CLEAN, steps_offset=1), DDPMScheduler(**CLEAN, steps_offset=1)
    assert schedule_difference(ddim, ddpm) == ""
    assert schedule_difference(ddim, DPMSolverMultistepScheduler(**SD)) == ""
    assert schedule_difference(ready(ddim, 10), ready(ddpm, 10)) == ""
    assert schedule_difference(DDIMScheduler(**CLEAN), DDIMScheduler(**CLEAN, prediction_type="v_prediction")) == ""


def test_differences_are_named() -> None:
    ddim, euler = DDIMScheduler(**CLEAN), EulerDiscreteScheduler(**SD)
    assert schedule_difference(ddim, euler) == (
        "latents of DDIMScheduler are variance preserving, those of EulerDiscreteScheduler are picture + sigma noise"
    )
    flow = FlowMatchEulerDiscreteScheduler()
    assert "(1 - sigma) picture + sigma noise" in schedule_difference(ddim, flow)
    assert schedule_difference(ddim, DDIMScheduler()).startswith("alphas_cumprod differs, most at entry ")
    shifted = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert schedule_difference(ready(flow, 5), ready(shifted, 5)).startswith("timesteps differs")
    five, six = (ready(DDIMScheduler(**CLEAN), steps) for steps in (5, 6))
    assert schedule_difference(five, six) == "timesteps has 5 entries for DDIMScheduler and 6 for DDIMScheduler"


def test_training_steps() -> None:
    scheduler = DDIMScheduler(**CLEAN)
    beta = training_beta(scheduler, torch.tensor(981))
    assert beta == pytest.approx(float(scheduler.betas[981]), rel=1e-4)
    assert training_beta(FlowMatchEulerDiscreteScheduler(), 981.0) is None
