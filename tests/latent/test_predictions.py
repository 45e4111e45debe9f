"""Kinds of prediction: each says the same of noise and picture, at every level, as the schedulers understand it."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from diffusemble.latent.base import Level, Prediction
from diffusemble.latent.predictions import from_noise, to_clean, to_noise, told
from tests.latent.members import noise

KINDS = get_args(Prediction)
LEVELS = [Level(0.6, 0.8), Level(1.0, 7.0), Level(0.3, 0.7)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_noise_and_picture_come_out_as_they_went_in(kind: Prediction, level: Level) -> None:
    clean, eps = noise(3), noise(4)
    x = level.alpha * clean + level.sigma * eps
    prediction = told(eps, clean, level, kind)
    close: dict[str, float] = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(to_noise(prediction, x, level, kind), eps, **close)
    torch.testing.assert_close(to_clean(prediction, x, level, kind), clean, **close)
    torch.testing.assert_close(from_noise(eps, x, level, kind), prediction, **close)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_ddim_understands_the_same(kind: Any) -> None:
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(10)
    bar = float(scheduler.alphas_cumprod[500])
    level, clean, eps = Level(bar**0.5, (1 - bar) ** 0.5), noise(3), noise(4)
    x = level.alpha * clean + level.sigma * eps
    out = scheduler.step(told(eps, clean, level, kind), 500, x)
    torch.testing.assert_close(out.pred_original_sample, clean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_euler_understands_the_same_in_its_own_space(kind: Any) -> None:
    scheduler = EulerDiscreteScheduler(prediction_type=kind)
    scheduler.set_timesteps(10)
    level, clean, eps = Level(1.0, float(scheduler.sigmas[0])), noise(3), noise(4)
    x = clean + level.sigma * eps
    scheduler.scale_model_input(x, scheduler.timesteps[0])
    out = scheduler.step(told(eps, clean, level, kind), scheduler.timesteps[0], x)
    torch.testing.assert_close(out.pred_original_sample, clean, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_known_is_not_made_up() -> None:
    x = noise(3)
    assert torch.equal(to_clean(-x, x, Level(0.0, 1.0), "v_prediction"), x)
    with pytest.raises(ValueError, match=r"alpha 0.*predict velocity or the picture"):
        to_clean(x, x, Level(0.0, 1.0), "epsilon")
    with pytest.raises(ValueError, match=r"alpha 0"):
        from_noise(x, x, Level(0.0, 1.0), "flow_prediction")
    with pytest.raises(ValueError, match=r"sigma 0.*Ask before it"):
        to_noise(x, x, Level(1.0, 0.0), "sample")
