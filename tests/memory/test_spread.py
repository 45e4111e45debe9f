"""Blocks that pass lie as far apart as they can."""

from __future__ import annotations

import random

import pytest

from diffusemble.memory.spread import spread, spreads


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
