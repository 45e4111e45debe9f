"""What is seen of a pipeline's step: its levels, and its predictions without and with the prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusemble import Member, aggregate
from diffusemble.latent.base import Step
from stock import Stock, flux_true_guidance, gligen, perturbed_attention, plain
from tiny import tiny_scheduler
from toys import Recorded, toy


def seen(stock: Stock, **more: Any) -> Step:
    combine = Recorded()
    pipeline, call = stock
    aggregate(
        [Member(name, pipeline, {**call, **more}, window=window) for name, window in (("a", None), ("b", 1.0))], combine
    )
    return combine.steps[-1][1]


@pytest.mark.parametrize("stock", [plain, gligen, flux_true_guidance])
def test_predictions_without_and_with_the_prompt_are_seen(stock: Any) -> None:
    step = seen(stock())
    assert step.halves is not None
    assert step.guidance == (3.0 if stock is flux_true_guidance else 4.0)
    without, with_prompt = step.halves
    assert torch.equal(without + step.guidance * (with_prompt - without), step.prediction)


def test_guidance_that_is_not_a_scale_is_not_called_one() -> None:
    rescaled = seen(plain(), guidance_rescale=0.9)
    assert rescaled.halves is not None
    assert rescaled.guidance is None
    for stock, more in (
        (plain(), {"guidance_scale": 1.0}),
        (perturbed_attention(), {}),
        (perturbed_attention(), {"guidance_scale": 1.0}),
    ):
        step = seen(stock, **more)
        assert step.halves is step.guidance is None


def test_steps_name_levels_and_kinds() -> None:
    combine = Recorded("prediction")
    members = [toy("a", 1), toy("b", 2, window=1.0, weight=0.7, length=0.1)]
    aggregate(members, combine, steps=4)
    alphas = tiny_scheduler().alphas_cumprod
    for step in (found[1] for found in combine.steps):
        assert step.stepped is None
        assert (step.kind, step.weight, step.length) == ("epsilon", 0.7, 0.1)
        assert step.before.alpha == pytest.approx(float(alphas[int(step.timestep)]) ** 0.5)
    assert combine.steps[0][0].after == combine.steps[1][0].before
