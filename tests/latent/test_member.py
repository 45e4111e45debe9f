"""What members may say of themselves, and what is put in where they say nothing."""

from __future__ import annotations

from typing import Any

import pytest

from diffusemble import aggregate
from diffusemble.latent.member import with_defaults
from toys import toy as made


def toy(name: str, **more: Any) -> Any:
    return made(name, 1, **more)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ((3, 1), r"first and the last step, counted from 0; member 'b' has \(3, 1\)"),
        ((-1, 1), r"member 'b' has \(-1, 1\)"),
        (3, r"share of the steps, from 0 to 1; member 'b' has 3. Give for example 0.2, or .* as \(0, 2\)"),
        (-0.5, r"member 'b' has -0.5"),
    ],
)
def test_windows_are_checked(window: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy("b", window=window)


def test_a_window_after_the_last_step_is_refused() -> None:
    with pytest.raises(ValueError, match="window of member 'b' begins with step 4, but the last of 4 steps is 3"):
        aggregate([toy("a"), toy("b", window=(4, 6))], steps=4)


def test_members_are_checked() -> None:
    for members, message in (
        ([], "at least one member, the base; got none"),
        ([toy("a"), toy("a")], "Two members are called 'a'"),
        ([toy("a", window=0.3)], "the base and draws the whole picture, so it has no window; 'a' has 0.3"),
    ):
        with pytest.raises(ValueError, match=message):
            aggregate(members)
    with pytest.raises(ValueError, match="Unknown way to combine models 'sum'"):
        aggregate([toy("a")], "sum")


def test_weights_left_open_lie_on_the_unit_sphere() -> None:
    one, two, three = with_defaults([toy("a"), toy("b"), toy("c")], "latents")
    assert one.weight == 0.5
    assert two.weight == three.weight == pytest.approx(0.375**0.5)
    assert [member.weight for member in with_defaults([toy("a"), toy("b", weight=2.0)], "prediction")] == [1.0, 2.0]
