"""Who was made for which picture."""

import pytest

from diffusemble.evaluation.grounds import NOBODY, grounds_of, kinds, owners
from diffusemble.evaluation.pictures import Row
from diffusemble.experts.expert import Expert
from tests.tiny import tiny_unet

ROWS = tuple(
    Row(f"{style}/{topic}.png", f"{topic}, {style} style", topic, style, topic, "pair")
    for style in ("noto", "flat", "openmoji")
    for topic in ("animals", "things")
)
UNET = tiny_unet()


def zoo(*names: str) -> list[Expert]:
    return [Expert(name, UNET, source=f"zoo:{name}") for name in names]


def test_experts_of_styles_own_styles_and_experts_of_topics_own_topics() -> None:
    styles = grounds_of(zoo("shaded", "flat", "outlined"), {})
    assert owners(ROWS, styles) == ("shaded", "shaded", "flat", "flat", "outlined", "outlined")
    topics = grounds_of(zoo("people", "animals", "things"), {})
    assert owners(ROWS, topics) == ("animals", "things") * 3


def test_overlapping_grounds_have_no_owners_and_fall_back_to_topics() -> None:
    both = grounds_of(zoo("animals", "flat"), {})
    assert owners(ROWS, both) is None
    assert kinds(ROWS, both) == ("animals", "things") * 3


def test_pictures_of_nobody_and_experts_without_a_ground() -> None:
    some = grounds_of(zoo("shaded", "flat"), {})
    assert owners(ROWS, some) == ("shaded", "shaded", "flat", "flat", None, None)
    assert kinds(ROWS, some)[-1] == NOBODY
    mine = [Expert("mine", UNET, source="runs/mine")]
    assert grounds_of(mine, {}) == {}
    assert owners(ROWS, {}) is None
    assert owners(ROWS, grounds_of(mine, {"mine": {"style": ("flat",)}}))[2] == "mine"  # type: ignore[index]


def test_grounds_of_strangers_and_of_unknown_columns_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no expert 'she'. The experts are: flat"):
        grounds_of(zoo("flat"), {"she": {"style": ("flat",)}})
    with pytest.raises(ValueError, match=r"grounds.flat: pictures have no column 'colour'. .*style, topic"):
        grounds_of(zoo("flat"), {"flat": {"colour": ("red",)}})
