"""The planner is arithmetic on sizes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from diffusemble.config.generate import GenerateConfig
from diffusemble.config.memory import MemoryConfig
from diffusemble.config.units import format_bytes, parse_bytes
from diffusemble.memory.plan import Plan, Weights, Working, choose, make_plan, plans

# Two denoisers of 100 + 400, 10 outside; encoders of 60 and 80 with layers of 7 and 9, a VAE of 40.
WEIGHTS = Weights(((100, 400), (100, 400)), 0, 10, (60, 80), (7, 9), (40,))
WORKING = Working(encode=5, denoise=20, decode=(90, 50, 30))


def peak(**choice: object) -> int:
    return make_plan(WEIGHTS, WORKING, MemoryConfig(**choice)).peak  # type: ignore[arg-type]


def test_everything_in_memory_is_a_sum() -> None:
    assert peak() == 10 + 500 + 500 + 60 + 80 + 40 + 90


def test_what_visits_is_there_one_at_a_time() -> None:
    plan = make_plan(WEIGHTS, WORKING, MemoryConfig(parts="visit"))
    assert (plan.encode.bytes, plan.denoise.bytes, plan.decode.bytes) == (1010 + 80 + 5, 1010 + 20, 1010 + 40 + 90)
    assert make_plan(WEIGHTS, WORKING, MemoryConfig(parts="layers")).encode.bytes == 1010 + 9 + 5


def test_passing_blocks_take_two_of_the_largest() -> None:
    assert make_plan(WEIGHTS, WORKING, MemoryConfig(parts="visit", resident=1)).denoise.bytes == 10 + 500 + 800 + 20
    assert make_plan(WEIGHTS, WORKING, MemoryConfig(parts="visit", resident=0)).denoise.bytes == 10 + 800 + 20
    assert peak(resident=1, parts="stay") == 10 + 500 + 800 + 180 + 90  # buffers stay where parts do


def test_of_a_denoiser_that_does_not_fit_some_blocks_stay() -> None:
    """One of 57 blocks, as FLUX has; on a card that is a third too small two thirds of it stay."""
    weights = Weights(((10,) * 57,))
    plan = choose(weights, Working(), MemoryConfig(), 400)
    assert (plan.weights, plan.travels) == (400, 570 - 380)
    assert str(plan) == (
        "0.667 of 1 denoisers stay on the device (67%), other blocks pass through two buffers; text encoders and VAE "
        "stay, too; 190 bytes travel in every step; estimated peak 400 bytes, of it weights 400 bytes"
    )


@pytest.mark.parametrize("lockstep", [True, False])
def test_a_larger_budget_never_copies_more(lockstep: bool) -> None:
    weights = replace(WEIGHTS, blocks=((30, 60, 500, 80, 80),) * 3, controls=(300, 70), lockstep=lockstep)
    there = list(plans(weights, WORKING, MemoryConfig(vae="whole")))
    least = make_plan(weights, WORKING, MemoryConfig(resident=0, parts="layers", controls="visit"))
    assert min(one.peak for one in there) == least.peak
    budgets = range(least.peak, there[0].peak + 10, 10)
    travels = [next(one for one in there if one.peak <= budget).travels for budget in budgets]
    assert travels == sorted(travels, reverse=True)
    assert (travels[0], travels[-1]) == (least.travels, 0)


def test_no_plan_copies_more_than_whole_denoisers_in_as_much_memory() -> None:
    weights = replace(WEIGHTS, blocks=((30, 60, 500, 80, 80),) * 3)
    there = list(plans(weights, WORKING, MemoryConfig(vae="whole")))
    wholes = [one for one in there if all(len(set(blocks)) == 1 for blocks in one.stays)]
    assert len(wholes) == 4 * 3
    for whole in wholes:
        assert next(one for one in there if one.peak <= whole.peak).travels <= whole.travels


def test_controlnets_stay_or_come_in_every_step() -> None:
    both = replace(WEIGHTS, controls=(70, 30))

    def plan(**choice: object) -> Plan:
        return make_plan(both, WORKING, MemoryConfig(parts="visit", **choice))  # type: ignore[arg-type]

    assert plan(controls="stay").denoise.bytes == 1010 + 100 + 20
    assert plan(controls="visit").denoise.bytes == 1010 + 70 + 20
    assert plan(controls="visit", resident=0).denoise.bytes == 10 + max(800, 70) + 20  # buffers make room
    assert plan(controls="visit").decode.bytes == 1010 + 40 + 90
    assert "; ControlNets come when they are called;" in str(plan(controls="visit"))
    assert [one.controls for one in plans(both, WORKING, MemoryConfig(resident=2, vae="whole"))] == (
        ["stay"] * 3 + ["visit"] * 3
    )


def test_whole_denoisers_come_one_at_a_time() -> None:
    whole = replace(WEIGHTS, blocks=((400,), (600,)), whole=True)
    plan = make_plan(whole, WORKING, MemoryConfig(parts="visit", resident=0))
    assert plan.denoise.bytes == 10 + 600 + 20
    assert str(plan).startswith("0 of 2 denoisers stay on the device (0%), the others come whole when they are called;")


def test_the_decoder_may_take_less() -> None:
    assert peak(parts="visit", vae="pictures") == 1010 + 40 + 50
    assert make_plan(WEIGHTS, WORKING, MemoryConfig(parts="visit", vae="tiles")).decode.bytes == 1010 + 40 + 30


def test_plans_come_fastest_first_and_exact_ones_before_all_others() -> None:
    there = list(plans(WEIGHTS, WORKING, MemoryConfig()))
    assert there[0].peak == peak()
    assert [plan.exact for plan in there] == sorted((plan.exact for plan in there), reverse=True)
    for how in ("whole", "pictures", "tiles"):
        travels = [plan.travels for plan in there if plan.vae == how]
        assert all(before <= after for before, after in pairwise(travels))


@pytest.mark.parametrize("budget", [1300, 1280, 1140, 1100, 1095, 1030])
def test_the_first_plan_that_fits_is_chosen(budget: int) -> None:
    plan = choose(WEIGHTS, WORKING, MemoryConfig(), budget)
    assert plan.peak <= budget
    there = list(plans(WEIGHTS, WORKING, MemoryConfig()))
    assert all(one.peak > budget for one in there[: there.index(plan)])


def test_a_budget_that_nothing_fits_names_the_least() -> None:
    rule = r"budget of 800 bytes: the least .* is 830 bytes \(denoising: weights 810 bytes, working memory 20 bytes\)"
    with pytest.raises(ValueError, match=rule):
        choose(WEIGHTS, WORKING, MemoryConfig(), 800)


def test_the_least_that_is_named_is_enough() -> None:
    weights = replace(WEIGHTS, outside=1_234_567_894)
    with pytest.raises(ValueError, match=r"the least that this drawing needs is 1\.24 GB") as refused:
        choose(weights, WORKING, MemoryConfig(), parse_bytes("1.23GB"))
    assert choose(weights, WORKING, MemoryConfig(), parse_bytes("1.24 GB")).peak < 1_240_000_000
    assert "budget of 1.23 GB" in str(refused.value)


def test_without_a_budget_what_was_chosen_is_kept() -> None:
    plan = choose(WEIGHTS, WORKING, MemoryConfig(resident=1, parts="layers", vae="tiles"), None)
    assert (plan.resident, plan.parts, plan.vae, plan.exact) == (1, "layers", "tiles", False)
    assert str(plan).startswith(
        "1 of 2 denoisers stay on the device (50%), other blocks pass through two buffers; text encoders and VAE come "
        "layer by layer; decoded in tiles; estimated peak "
    )


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 * 10**9), ("7.5 GiB", 15 * 2**29), ("100 MB", 10**8), ("64kB", 64000)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size
    assert GenerateConfig(prompts=("a cat",), memory_budget=text).memory_budget == text


@pytest.mark.parametrize("text", ["8", "GB", "8 gigabytes", "8gb", "-1GB", "0GB", "8 GB RAM", "1e3MB"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"a number with one of the units kB, MB, GB, KiB, MiB, GiB"):
        GenerateConfig(prompts=("a cat",), memory_budget=text)


def test_sizes_are_written() -> None:
    assert [format_bytes(size) for size in (17, 2500, 3 * 10**6, 12_345_678_901)] == [
        "17 bytes",
        "2.50 kB",
        "3.00 MB",
        "12.35 GB",
    ]
