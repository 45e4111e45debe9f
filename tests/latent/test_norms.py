"""What AMDM does to the norm of latents: ideal Gaussian denoiser, 50 DDIM steps, lengths and weights as published."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
from diffusers import DDIMScheduler
from torch import Tensor

from diffusemble.latent.base import Step
from diffusemble.latent.combine import build_combine
from diffusemble.latent.schedules import levels, training_beta
from tests.latent.members import noise

SHAPE = (1, 4, 64, 64)
NORM = 128.0
PUBLISHED = {"weights": (0.5, sqrt(0.75)), "lengths": (55 / 128, 45 / 128)}


def norm_of_base(last: int, **options: Any) -> float:
    """Norm of the base's latents after step ``last``, exchanging from step 1 on."""
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.set_timesteps(50)
    way = build_combine("amdm", **options)
    latents: list[Tensor] = [noise(seed, *SHAPE) for seed in (1, 2)]
    before: list[Step | None] = [None, None]
    for index, timestep in enumerate(scheduler.timesteps[: last + 1]):
        start, end = levels(scheduler, timestep)
        steps = [
            Step(
                index=index,
                timestep=float(timestep),
                before=start,
                after=end,
                sample=x,
                prediction=start.sigma * x,
                kind="epsilon",
                weight=PUBLISHED["weights"][m],
                length=PUBLISHED["lengths"][m],
                stepped=scheduler.step(start.sigma * x, timestep, x).prev_sample,
                member=m,
                beta=training_beta(scheduler, timestep),
                previous=before[m],
            )
            for m, x in enumerate(latents)
        ]
        before = list(steps)
        latents = list(way(steps)) if index >= 1 else [one.stepped for one in steps if one.stepped is not None]
    return float(latents[0].norm())


@pytest.mark.parametrize("last", [7, 49])
@pytest.mark.parametrize("options", [{}, {"deviation": False}, {"mix": "renormalised"}])
def test_the_default_keeps_the_norm_in_any_window(options: dict[str, Any], last: int) -> None:
    assert norm_of_base(last, **options) == pytest.approx(NORM, rel=0.04)


def test_others_do_not() -> None:
    assert norm_of_base(7, shell=False) == pytest.approx(111, abs=2)
    assert norm_of_base(7, mix="linear", deviation=False) == pytest.approx(94, abs=2)
    assert norm_of_base(7, mix="unit", deviation=False) > 6 * NORM
    assert norm_of_base(49, mean="ddpm") < NORM / 8


def test_the_published_code_keeps_it_in_its_window_and_diverges_beyond() -> None:
    assert norm_of_base(7, compat="reference") == pytest.approx(132, abs=4)
    assert norm_of_base(49, compat="reference") > 1e5
