from __future__ import annotations

from functools import partial

import pytest

from diffusemble.merging.blockwise import slots
from diffusemble.merging.coordinates import LINES, Axis, Step, axes, by_expert, climb, most_trials, moved

ROUNDS = 6


def along(name: str, score) -> tuple[float, list[float]]:
    """The best value that a line search tries, and everything it tries."""
    tried: dict[float, float] = {}

    def measure(value: float) -> float:
        return tried.setdefault(value, score(value))

    LINES[name](measure, ROUNDS)
    return max(tried, key=lambda value: tried[value]), list(tried)


def test_the_order_is_base_and_middle_first_then_the_paths():
    names = [axis.slots for axis in axes(slots("sd1"), 2)]
    assert names[:4] == [("BASE",), ("M00",), ("IN00",), ("IN01",)]
    assert names[-1] == ("OUT11",)
    assert len(names) == 26


def test_neighbours_share_a_coordinate_but_never_across_two_paths():
    names = [axis.slots for axis in axes(slots("sdxl"), 2, pairs=True)]
    assert names[:3] == [("BASE",), ("M00",), ("IN00", "IN01")]
    assert ("IN08",) in names
    assert ("OUT00", "OUT01") in names
    assert sorted(slot for name in names for slot in name) == sorted(slots("sdxl"))


def test_two_experts_have_one_coordinate_per_slot_and_more_have_one_each():
    assert {axis.expert for axis in axes(slots("sd1"), 2)} == {1}
    assert [axis.expert for axis in axes(("BASE", "M00"), 3)] == [0, 1, 2, 0, 1, 2]


def test_moving_one_share_keeps_the_others_proportions_and_the_sum():
    shares = {"M00": (0.2, 0.6, 0.2), "IN00": (1.0, 0.0, 0.0)}
    after = moved(shares, Axis(("M00", "IN00"), 0), 0.6)
    assert after["M00"] == pytest.approx((0.6, 0.3, 0.1))
    assert after["IN00"] == pytest.approx((0.6, 0.2, 0.2))
    assert moved(shares, Axis(("M00",), 1), 1.0) == {"M00": (0.0, 1.0, 0.0), "IN00": (1.0, 0.0, 0.0)}


def test_of_two_experts_the_other_gets_the_rest_exactly():
    for tenth in range(11):
        assert moved({"M00": (0.3, 0.7)}, Axis(("M00",), 1), tenth / 10)["M00"] == (1 - tenth / 10, tenth / 10)


def test_the_grid_tries_all_tenths():
    best, tried = along("grid", lambda value: -abs(value - 0.3))
    assert best == 0.3
    assert tried == [tenth / 10 for tenth in range(11)]


@pytest.mark.parametrize("peak", [0.0, 0.2, 0.5, 0.7, 1.0])
def test_a_bisection_with_a_midpoint_closes_in_on_a_peak(peak):
    best, tried = along("bisect-midpoint", lambda value: -((value - peak) ** 2))
    assert abs(best - peak) <= 2**-ROUNDS
    assert len(tried) <= most_trials("bisect-midpoint", ROUNDS, [Axis(("M00",), 1)], 1) - 1


@pytest.mark.parametrize("slope", [-1, 1])
def test_a_bisection_keeps_the_half_at_the_better_end(slope):
    best, tried = along("bisect", lambda value: slope * value)
    assert best == (1.0 if slope > 0 else 0.0)
    assert tried[2:] == [1 - 2**-k if slope > 0 else 2**-k for k in range(1, ROUNDS)]
    assert len(tried) == ROUNDS + 1 == most_trials("bisect", ROUNDS, [Axis(("M00",), 1)], 1) - 1


@pytest.mark.parametrize(("name", "count"), [("grid", 11), ("bisect", 2), ("bisect-midpoint", 3)])
def test_ties_end_a_line_at_once(name, count):
    assert len(along(name, lambda value: 1.0)[1]) == count


def test_two_equal_ends_above_the_middle_end_a_line():
    assert along("bisect-midpoint", lambda value: abs(value - 0.5))[1] == [0.0, 0.5, 1.0]


def test_a_climb_finds_the_top_of_a_separable_hill_and_stops_there():
    goal = {"BASE": 0.2, "M00": 0.9, "IN00": 0.5}
    visited: list[Step] = []

    def evaluate(shares, step):
        visited.append(step)
        return -sum((shares[slot][1] - goal[slot]) ** 2 for slot in goal)

    start = dict.fromkeys(goal, (0.5, 0.5))
    shares, score = climb(start, axes(tuple(goal), 2), partial(LINES["grid"], rounds=1), evaluate, 3)
    assert {slot: own[1] for slot, own in shares.items()} == goal
    assert score == pytest.approx(0)
    assert visited[0] == Step()
    assert visited[-1].number == 2  # the second pass changed nothing


@pytest.mark.parametrize("name", LINES)
def test_equal_scores_keep_the_start_and_end_the_search(name):
    start = dict.fromkeys(("BASE", "M00"), (0.25, 0.5, 0.25))
    steps: list[Step] = []

    def evaluate(shares, step):
        steps.append(step)
        return 0.0

    line = partial(LINES[name], rounds=ROUNDS)
    assert climb(start, axes(("BASE", "M00"), 3), line, evaluate, 3) == (start, 0.0)
    assert {step.number for step in steps} == {0, 1}


def test_merges_that_draw_nothing_never_win():
    def evaluate(shares, step):
        return float("-inf") if shares["M00"][1] > 0.5 else shares["M00"][1]

    shares, _ = climb({"M00": (1.0, 0.0)}, axes(("M00",), 2), partial(LINES["grid"], rounds=1), evaluate, 1)
    assert shares["M00"][1] == 0.5


def test_shares_by_expert():
    assert list(by_expert({"BASE": (0.1, 0.9), "M00": (0.5, 0.5)})) == [
        {"BASE": 0.1, "M00": 0.5},
        {"BASE": 0.9, "M00": 0.5},
    ]
