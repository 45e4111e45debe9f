import colorsys

import pytest
import torch

from diffusemble.evaluation.scenes.finds import CROP, crop, finds
from diffusemble.evaluation.scenes.ink import (
    HUES,
    box_of,
    colour_masks,
    foreground,
    hue_saturation_value,
    paper_of,
    parts,
)

INKS = {"red": (0.9, 0.1, 0.1), "yellow": (0.95, 0.8, 0.1), "green": (0.1, 0.7, 0.2), "blue": (0.1, 0.4, 0.9),
        "purple": (0.6, 0.2, 0.8)}  # fmt: skip


def page(*blots, paper=(1.0, 1.0, 1.0), side=48):
    """Paper with rectangles (left, top, right, bottom, RGB)."""
    image = torch.tensor(paper)[:, None, None].expand(3, side, side).clone()
    for left, top, right, bottom, ink in blots:
        image[:, top:bottom, left:right] = torch.tensor(ink)[:, None, None]
    return image


def test_ink_is_what_differs_from_the_paper_whatever_its_colour():
    for paper in ((1.0, 1.0, 1.0), (0.8, 0.9, 1.0), (0.1, 0.1, 0.1)):
        image = page((5, 7, 20, 30, (0.9, 0.1, 0.1)), paper=paper)
        assert torch.allclose(paper_of(image), torch.tensor(paper))
        mask = foreground(image)
        assert int(mask.sum()) == 15 * 23
        assert box_of(mask) == pytest.approx((5 / 48, 7 / 48, 20 / 48, 30 / 48))


def test_hue_agrees_with_the_standard_library():
    colours = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(0))
    hue, saturation, value = hue_saturation_value(colours)
    for row in range(6):
        for column in range(5):
            expected = colorsys.rgb_to_hsv(*colours[:, row, column].tolist())
            found = (hue[row, column] / 360, saturation[row, column], value[row, column])
            assert [float(part) for part in found] == pytest.approx(expected, abs=1e-5)


def test_ranges_of_hues_do_not_overlap():
    wheel = torch.tensor([colorsys.hsv_to_rgb(degree / 360, 0.8, 0.8) for degree in range(360)]).T[:, None]
    masks = torch.stack(list(colour_masks(wheel).values()))
    assert int(masks.sum(dim=0).max()) == 1
    for mask, (start, end) in zip(masks, HUES.values(), strict=True):
        assert int(mask.sum()) == pytest.approx((end - start) % 360, abs=2)


def test_grey_and_black_have_no_colour():
    masks = colour_masks(page((5, 5, 40, 40, (0.4, 0.4, 0.42)), (10, 10, 20, 20, (0.1, 0.02, 0.02))))
    assert not any(mask.any() for mask in masks.values())


def test_parts_are_connected_and_specks_are_left_out():
    mask = torch.zeros(30, 40, dtype=torch.bool)
    mask[2:10, 2:12] = mask[15:25, 20:35] = mask[28, 2:5] = True
    found = parts(mask)
    assert [int(part.sum()) for part in found] == [150, 80]
    assert not (found[0] & found[1]).any()


def test_parts_bridge_gaps_within_reach_only():
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[5:15, 2:10] = mask[5:15, 12:20] = True
    assert len(parts(mask, reach=1)) == 1
    assert len(parts(mask, reach=0)) == 2
    assert int(parts(mask, reach=1)[0].sum()) == 160


def test_an_empty_mask_has_no_box():
    with pytest.raises(ValueError, match="An empty mask has no box"):
        box_of(torch.zeros(4, 4, dtype=torch.bool))


@pytest.mark.parametrize("colour", INKS)
def test_a_blot_is_found_in_its_colour(colour):
    (found,) = finds(page((8, 10, 30, 40, INKS[colour])))
    assert found.colour == colour
    assert found.shares[colour] == 1
    assert found.box == pytest.approx((8 / 48, 10 / 48, 30 / 48, 40 / 48))


def test_things_that_touch_are_found_by_their_colours():
    image = page((4, 4, 24, 24, INKS["red"]), (4, 24, 24, 44, INKS["blue"]))
    boxes = {find.colour: find.box for find in finds(image)[1:]}
    assert boxes["red"] == pytest.approx((4 / 48, 4 / 48, 24 / 48, 24 / 48))
    assert boxes["blue"] == pytest.approx((4 / 48, 24 / 48, 24 / 48, 44 / 48))


def test_black_ink_is_a_find_without_colour():
    (found,) = finds(page((8, 10, 30, 40, (0.0, 0.0, 0.0))))
    assert found.colour is None


def test_empty_paper_has_no_finds():
    assert finds(page()) == []


def test_a_crop_keeps_its_proportions_in_the_middle_of_white():
    piece = crop(torch.zeros(3, 10, 30))
    assert piece.shape == (3, CROP, CROP)
    dark = piece[0] < 0.5
    rows, columns = dark.any(dim=1).nonzero().flatten(), dark.any(dim=0).nonzero().flatten()
    height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
    assert width / height == pytest.approx(3, rel=0.15)
    assert abs(int(rows[0]) - (CROP - 1 - int(rows[-1]))) <= 3
