"""Blocks that pass lie as far apart as they can."""

from __future__ import annotations

import random

import pytest

from diffusemble.memory.spread import copied, running_order, spread, spreads


@pytest.mark.parametrize(("n", "resident"), [(1, 0), (2, 1), (3, 1), (3, 2), (3, 3), (2, 7)])
def test_whole_denoisers_in_lockstep_stay_from_the_first(n: int, resident: int) -> None:
    found = spread(((30, 500, 80, 80),) * n, True, resident)
    assert found.stays == tuple((number < resident,) * 4 for number in range(n))
    assert found.resident == min(resident, n)
    assert found.passing == 690 * (n - found.resident)
    assert found.largest == (500 if resident < n else 0)


@pytest.mark.parametrize("lockstep", [True, False])
@pytest.mark.parametrize("resident", [0.1, 0.75, 1.5, 2.2, 2.9])
def test_at_least_so_much_stays_and_less_than_a_block_more(lockstep: bool, resident: float) -> None:
    chance = random.Random(0)
    sizes = tuple(tuple(chance.randrange(900) for _ in range(19)) for _ in range(3))
    found = spread(sizes, lockstep, resident)
    total = sum(map(sum, sizes))
    away = [
        size for expert in range(3) for size, stay in zip(sizes[expert], found.stays[expert], strict=True) if not stay
    ]
    assert (found.passing, found.largest) == (sum(away), max(away))
    assert found.resident == pytest.approx(3 * (1 - found.passing / total))
    assert 0 <= total - found.passing - resident / 3 * total < max(map(max, sizes))


@pytest.mark.parametrize("passing", [1, 7, 19, 20, 37, 56])
def test_between_equal_blocks_that_pass_lie_equally_many_that_stay(passing: int) -> None:
    """So no copy has less than its share of the computation, but for one block, to hide behind."""
    (stays,) = spread(((5,) * 57,), True, 1 - passing / 57 - 1e-9).stays
    places = [number for number, stay in enumerate(stays) if not stay]
    gaps = {after - before for before, after in zip(places, [*places[1:], places[0] + 57], strict=True)}
    assert len(places) == passing
    assert max(gaps) - min(gaps) <= 1


def test_one_after_the_other_every_denoiser_keeps_its_share() -> None:
    found = spread(((4,) * 12,) * 3, False, 1.0)
    assert [sum(stays) for stays in found.stays] == [4, 4, 4]


def test_denoisers_that_run_whole_count_one_each() -> None:
    found = spread(((900,), (100,), (100,)), True, 1)
    assert found.stays == ((True,), (False,), (False,))
    assert (found.resident, found.passing, found.largest) == (1, 200, 100)
    assert [one.resident for one in spreads(((900,), (100,)), True)] == [2, 1, 0]


def test_all_choices_go_from_everything_to_nothing() -> None:
    found = spreads(((30, 500, 80, 80), (30, 500, 80, 80)), True)
    assert (found[0].passing, found[-1].resident) == (0, 0)
    assert len({one.stays for one in found}) == len(found)


SIZES = ((1, 2, 4), (10, 20, 40))


@pytest.mark.parametrize(
    ("order", "lockstep", "room", "afresh", "expected"),
    [
        ((0, 1), True, 2, False, 77),
        ((0, 1, 0), True, 2, False, 77),  # the first expert's block is still there for the third one
        ((0, 0, 1), True, 2, False, 77),
        ((0, 1, 0), False, 2, False, 7 + 77),  # each of its blocks was overwritten in between
        ((0, 0), False, 1, False, 14),
        ((0,), False, 3, False, 0),  # all of them find room, and nothing is copied again
        ((0,), False, 3, True, 7),
    ],
)
def test_what_is_still_there_is_not_copied(
    order: tuple[int, ...], lockstep: bool, room: int, afresh: bool, expected: int
) -> None:
    turns = running_order(SIZES, order, lockstep)
    assert copied(spread(SIZES, lockstep, 0), SIZES, turns, room, afresh) == expected
    assert copied(spread(SIZES, lockstep, 2), SIZES, turns, room, afresh) == 0
