from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageColor

from diffusemble.pictures.attention import PointMaps, attention_picture, fit, overlay
from diffusemble.pictures.text import COLOURS

WHITE = Image.new("RGB", (8, 8), "white")


def one_hot(index: int, n: int = 3, grid: tuple[int, int] = (2, 2)) -> torch.Tensor:
    maps = torch.zeros(n, *grid)
    maps[index] = 1.0
    return maps


def test_equal_shares_leave_the_picture_as_it_is() -> None:
    grey = Image.effect_noise((8, 8), 50).convert("RGB")
    assert overlay(grey, torch.full((3, 2, 2), 1 / 3)).tobytes() == grey.tobytes()


def test_each_place_takes_the_colour_of_its_strongest_expert() -> None:
    maps = torch.cat([one_hot(0, grid=(2, 1)), one_hot(2, grid=(2, 1))], dim=2)
    pixels = np.asarray(overlay(WHITE, maps)).astype(int)
    for columns, expert in ((slice(0, 4), 0), (slice(4, 8), 2)):
        own = np.array(ImageColor.getrgb(COLOURS[expert]))
        assert np.abs(pixels[:, columns] - (0.1 * 255 + 0.9 * own)).max() <= 1


def test_a_larger_share_gives_a_stronger_colour() -> None:
    shares = [torch.tensor([share, 1 - share]).view(2, 1, 1) for share in (0.5, 0.6, 0.8, 1.0)]
    distance = [np.abs(np.asarray(overlay(WHITE, maps)).astype(int) - 255).sum() for maps in shares]
    assert distance == sorted(distance)
    assert len(set(distance)) == 4


def test_the_bar_shows_mean_shares() -> None:
    maps = torch.tensor([0.25, 0.75]).view(2, 1, 1).expand(2, 4, 4)
    picture = attention_picture(WHITE, ["a", "b"], [PointMaps("mid", (1,), [maps])], "title")
    pixels = np.asarray(picture)
    rows = [
        [int((pixels[y] == ImageColor.getrgb(colour)).all(axis=1).sum()) for colour in COLOURS[:2]]
        for y in range(170, picture.height)
    ]
    assert [33, 99] in rows


def test_the_picture_has_a_row_per_point_and_a_column_per_step() -> None:
    def size(points: int, steps: int) -> tuple[int, int]:
        maps = [PointMaps(f"up.{number}", tuple(range(1, steps + 1)), [one_hot(0)] * steps) for number in range(points)]
        return attention_picture(WHITE, ["a", "b", "c"], maps, "a title").size

    (narrow, low), (wide, high) = size(2, 5), size(3, 6)
    assert wide - narrow == 142
    assert high - low == 153


def test_pictures_of_any_size_are_shown_in_their_own_shape() -> None:
    assert fit((512, 768), 132) == (88, 132)
    assert fit((64, 64), 132) == (132, 132)
    maps = [PointMaps("mid", (1,), [one_hot(0)])]
    tall = attention_picture(Image.new("RGB", (512, 768)), ["a" * 90, "b", "c"], maps, "a title " * 40)
    assert tall.height == attention_picture(WHITE, ["a", "b", "c"], maps, "a").height
