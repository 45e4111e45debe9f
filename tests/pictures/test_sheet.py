from __future__ import annotations

import pytest
from PIL import Image, ImageChops

from diffusemble.pictures.sheet import Column, cell, contact_sheet, enlarge
from diffusemble.pictures.text import PAPER, width_of, wrap


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.effect_noise(size, 40 + seed).convert("RGB")


def test_every_picture_lies_unchanged_in_its_cell() -> None:
    columns = [
        Column(title, "#0072b2", [picture(10 * number + row) for row in range(3)], framed=number == 1)
        for number, title in enumerate(("one", "two"))
    ]
    sheet = contact_sheet(["a", "b", "c"], columns, "50 steps")
    for number, column in enumerate(columns):
        for row, own in enumerate(column.pictures):
            large = enlarge(own)
            left, top = cell(row, number, large.size)
            found = sheet.crop((left, top, left + large.width, top + large.height))
            assert ImageChops.difference(found, large).getbbox() is None


@pytest.mark.parametrize(("side", "factor"), [(16, 14), (64, 3), (100, 2), (224, 1), (512, 1)])
def test_small_pictures_grow_by_whole_factors(side: int, factor: int) -> None:
    assert enlarge(picture(0, (side, side))).size == (side * factor, side * factor)


def test_the_sheet_is_as_large_as_its_cells_and_labels() -> None:
    columns = [Column("title", "#0072b2", [picture(0)] * 2)] * 4
    sheet = contact_sheet(["a", "b"], columns)
    width, height = enlarge(picture(0)).size
    left, top = cell(1, 3, (width, height))
    assert sheet.width - (left + width) == sheet.height - (top + height) == 24
    assert contact_sheet(["a", "b"], columns, "footer").height > sheet.height


def test_labels_titles_and_footer_are_written() -> None:
    def inked(label: str, title: str, footer: str, box: tuple[int, int, int, int]) -> bool:
        sheet = contact_sheet([label], [Column(title, PAPER, [picture(0)])], footer)
        part = sheet.crop(tuple(side if side >= 0 else sheet.height + side for side in box))
        return ImageChops.difference(part, Image.new("RGB", part.size, PAPER)).getbbox() is not None

    label, head, foot = (0, 60, 190, 190), (194, 0, 386, 50), (0, -40, 386, -1)
    assert inked("prompt", "x", "f", label)
    assert not inked("", "x", "f", label)
    assert inked("p", "title", "f", head)
    assert inked("p", "x", "footer", foot)


def test_long_prompts_are_wrapped_and_cut() -> None:
    lines = wrap("a lighthouse in a storm, oil painting, very detailed " * 4, 150, 17, 3)
    assert len(lines) == 3
    assert all(width_of(line, 17) <= 150 for line in lines)
    assert lines[-1].endswith("...")
    assert wrap("short", 150, 17, 3) == ["short"]
    assert wrap("", 150, 17, 3) == [""]
    assert width_of(wrap("x" * 100, 150, 17, 3)[0], 17) <= 150
