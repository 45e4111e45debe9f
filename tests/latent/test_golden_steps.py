"""One aggregation and optimisation step of the published AMDM code, run once, and this implementation agree."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from diffusemble.latent.amdm import reference_draw_to, reference_mean, reference_weights
from diffusemble.latent.base import Level, Step
from diffusemble.latent.combine import build_combine

FILE = Path(__file__).parents[1] / "golden" / "amdm" / "amdm_step_n2.safetensors"


def cases() -> list[dict[str, Any]]:
    with safe_open(FILE, framework="pt") as file:
        described: list[dict[str, Any]] = json.loads(file.metadata()["cases"])
    return described


DATA = load_file(FILE)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def level(timestep: int) -> Level:
    bar = float(DATA["alphas_cumprod"][timestep])
    return Level(sqrt(bar), sqrt(1 - bar))


def member(case: dict[str, Any], number: int) -> Step:
    """The base (0) or the auxiliary model (1) after its scheduler's step, with the step before it."""
    name, weights = ("base", "aux")[number], reference_weights(case["omega"])
    tensors = {key: DATA[f"case{case['case']}.{key}_{name}"] for key in ("x", "prev_x", "prev_eps")}
    values = {"weight": weights[number], "length": case[f"p_{name}"] / sqrt(4 * 8 * 8), "member": number}
    earlier = Step(
        index=case["iteration"] - 1,
        timestep=case["mu_timestep"],
        before=level(case["mu_timestep"]),
        after=level(case["timestep"]),
        sample=tensors["prev_x"],  # not read
        prediction=tensors["prev_eps"],
        kind="epsilon",
        beta=1 - float(DATA["alphas"][case["mu_timestep"]]),
        **values,
    )
    return Step(
        index=case["iteration"],
        timestep=case["timestep"],
        before=level(case["timestep"]),
        after=level(1),  # not read
        sample=tensors["prev_x"],
        prediction=tensors["x"],  # not read: the published code uses the prediction of the step before
        kind="epsilon",
        stepped=tensors["x"],
        previous=earlier,
        **values,
    )


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"case{case['case']}")
def test_the_step_of_the_release_is_reproduced(case: dict[str, Any]) -> None:
    steps = [member(case, 0), member(case, 1)]
    for step, out in zip(steps, build_combine("amdm", compat="reference")(steps), strict=True):
        assert relative(out, DATA[f"case{case['case']}.out_{('base', 'aux')[step.member]}"]) < 1e-5


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"case{case['case']}")
def test_its_means_are_reproduced(case: dict[str, Any]) -> None:
    for number, name in enumerate(("base", "aux")):
        earlier = member(case, number).previous
        assert earlier is not None
        assert earlier.beta is not None
        mean = reference_mean(earlier.sample, earlier.prediction, earlier.before, earlier.beta)
        assert relative(mean, DATA[f"case{case['case']}.mu_{name}"]) < 1e-5


def test_three_cases_pass_the_mean_and_the_clamp_would_stop_them() -> None:
    overshoots = [min(case["p_aux"] - case["dist_aux"], case["p_base"] - case["dist_base"]) > 0 for case in cases()]
    assert overshoots == [True, True, True, False, False]


def test_where_the_release_divides_zero_by_zero_so_does_compat() -> None:
    mean = DATA["zero.mixed"]
    assert DATA["zero.out"].isnan().all()
    assert reference_draw_to(mean, mean, 1.0).isnan().all()


def test_nothing_is_aggregated_at_the_first_step() -> None:
    case = cases()[0]
    first = [Step(**{**vars(member(case, number)), "previous": None}) for number in (0, 1)]
    for step, out in zip(first, build_combine("amdm", compat="reference")(first), strict=True):
        assert out is step.stepped
