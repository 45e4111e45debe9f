from __future__ import annotations

import torch

from diffusemble.training.chance import Chance, Draw, seed_of

CHANCE = Chance(seed=1, batch=6, count=10, timesteps=range(1000), drop=0.1)


def same(one: Draw, other: Draw) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def test_a_step_depends_on_nothing_drawn_before() -> None:
    later = CHANCE.draw(7, (2, 3, 3))
    torch.rand(5)
    for step in range(7):
        CHANCE.draw(step, (2, 3, 3))
    assert same(CHANCE.draw(7, (2, 3, 3)), later)
    assert not same(CHANCE.draw(8, (2, 3, 3)), later)


def test_every_pass_visits_every_sample_once_in_another_order() -> None:
    drawn = torch.cat([CHANCE.indices(step) for step in range(5)])  # 30 = three passes over ten
    passes = drawn.view(3, 10)
    assert all(sorted(row.tolist()) == list(range(10)) for row in passes)
    assert len({tuple(row.tolist()) for row in passes}) == 3


def test_parts_make_up_the_whole() -> None:
    whole = CHANCE.draw(3, (2, 3, 3))
    parts = [whole.part(number, 3) for number in range(3)]
    assert all(len(part.indices) == 2 for part in parts)
    for name in vars(whole):
        joined = torch.stack([getattr(part, name) for part in parts], dim=1).flatten(0, 1)
        assert torch.equal(joined, getattr(whole, name))


def test_prompts_are_dropped_sample_by_sample() -> None:
    chance = Chance(seed=0, batch=50, count=50, timesteps=range(10), drop=0.1)
    dropped = torch.stack([chance.draw(step, (1, 1, 1)).dropped for step in range(100)]).float()
    assert abs(dropped.mean().item() - 0.1) < 0.02  # 5000 draws: standard deviation 0.004
    assert (dropped.sum(dim=1) < 50).all()  # never a whole batch
    assert (dropped.sum(dim=1) > 0).sum() > 90


def test_timesteps_stay_in_their_range() -> None:
    drawn = Chance(seed=0, batch=200, count=50, timesteps=range(3, 7), drop=0.1).draw(0, (1, 1, 1)).timesteps
    assert drawn.unique().tolist() == [3, 4, 5, 6]


def test_seeds_differ_by_every_part_of_the_name() -> None:
    assert len({seed_of(1, "a", 2), seed_of(1, "a", 3), seed_of(2, "a", 2), seed_of(1, "b", 2), seed_of(12, "a")}) == 5
    assert seed_of(1, 23) != seed_of(12, 3)
