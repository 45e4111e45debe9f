"""What is said of a run that differs from the one that was started."""

from __future__ import annotations

from typing import Any

import pytest

from diffusemble.config.changes import Change, first_change

LONG = {f"text_encoder/{number}.safetensors": "0" * 64 for number in range(9)}
PHOTO = {**LONG, "unet/a.safetensors": "1" * 64}
OTHER = {**LONG, "unet/a.safetensors": "2" * 64}


@pytest.mark.parametrize(
    ("then", "now", "change"),
    [
        ({"rate": 1, "data": [1]}, {"rate": 1, "data": [1]}, None),
        ({"rate": 1}, {"rate": 2}, Change("rate", "1", "2")),
        ({}, {"rate": 2}, Change("rate", "None", "2")),
        ({"a": {"b": {"c": 1}, "d": 2}}, {"a": {"b": {"c": 3}, "d": 2}}, Change("a.b.c", "1", "3")),
        ({"data": [LONG, {"path": "x"}]}, {"data": [LONG, {"path": "y"}]}, Change("data.1.path", "'x'", "'y'")),
        ({"data": [{}, {}]}, {"data": [{}]}, Change("data", "[{}, {}]", "[{}]")),
        ({"times": [0, 999]}, {"times": [0, 500]}, Change("times", "[0, 999]", "[0, 500]")),
        ({"a": "x" * 200}, {"a": None}, Change("a", "'" + "x" * 116 + "...", "None")),
    ],
)
def test_the_innermost_change_is_named(then: dict[str, Any], now: dict[str, Any], change: Change | None) -> None:
    assert first_change(then, now) == change


@pytest.mark.parametrize("listed", [False, True])
def test_experts_are_compared_by_name_order_and_file(listed: bool) -> None:
    def told(**experts: dict[str, str]) -> dict[str, Any]:
        several = [{"name": name, "files": files} for name, files in experts.items()]
        return {"set of experts": several} if listed else {"experts": experts}

    both = told(photo=PHOTO, anime=LONG)
    assert first_change(both, told(photo=PHOTO, anime=LONG)) is None
    assert first_change(told(photo=PHOTO), both) == Change("set of experts", "photo", "photo, anime")
    assert first_change(both, told(anime=LONG, photo=PHOTO)) == Change("set of experts", "photo, anime", "anime, photo")
    changed = Change("file unet/a.safetensors of expert 'photo'", "1" * 12, "2" * 12)
    assert first_change(both, told(photo=OTHER, anime=LONG)) == changed
    gone = Change("file unet/a.safetensors of expert 'photo'", "1" * 12, "none")
    assert first_change(both, told(photo=LONG, anime=LONG)) == gone
