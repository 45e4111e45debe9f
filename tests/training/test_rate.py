from __future__ import annotations

from pathlib import Path

import pytest

from diffusemble.training.rate import rate_at
from training.small import small_config


def rates(**settings: object) -> list[float]:
    config = small_config(Path("data"), Path("out"), rate=2.0, **settings)
    return [rate_at(step, config) for step in range(config.steps)]


def test_warm_up_rises_to_a_constant_rate() -> None:
    assert rates(steps=6, warmup=4) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_cosine_falls_from_the_rate_towards_zero() -> None:
    assert rates(steps=6, warmup=2, schedule="cosine") == pytest.approx([1.0, 2.0, 2.0, 1.7071, 1.0, 0.2929], abs=1e-4)


def test_without_warm_up_the_first_step_has_the_whole_rate() -> None:
    assert rates(steps=3) == [2.0, 2.0, 2.0]
