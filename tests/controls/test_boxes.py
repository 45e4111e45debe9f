"""Boxes: features, what lies between two, and what is none."""

from __future__ import annotations

import math

import pytest
import torch

from diffusemble.controls.boxes import between, check_box, fourier
from gated_cases import boxes


def test_fourier_features_are_sines_then_cosines_of_every_frequency():
    box = boxes(1)[0]
    features = fourier(box)
    assert features.shape == (64,)
    for j in range(8):
        angles = 100 ** (j / 8) * box
        torch.testing.assert_close(features[8 * j : 8 * j + 8], torch.cat([angles.sin(), angles.cos()]))


def test_fourier_features_keep_leading_dimensions():
    many = boxes(6).reshape(2, 3, 4)
    assert torch.equal(fourier(many)[1, 2], fourier(many[1, 2]))


@pytest.mark.parametrize(
    ("subject", "thing", "expected"),
    [
        ((0.0, 0.0, 0.5, 0.5), (0.25, 0.1, 1.0, 1.0), (0.25, 0.1, 0.5, 0.5)),  # they overlap: their intersection
        ((0.0, 0.0, 0.2, 0.3), (0.6, 0.7, 1.0, 1.0), (0.2, 0.3, 0.6, 0.7)),  # apart: the gap
        ((0.1, 0.2, 0.3, 0.4), (0.1, 0.2, 0.3, 0.4), (0.1, 0.2, 0.3, 0.4)),
    ],
)
def test_the_box_between_two(subject: tuple[float, ...], thing: tuple[float, ...], expected: tuple[float, ...]):
    a, b = torch.tensor(subject), torch.tensor(thing)
    assert torch.equal(between(a, b), torch.tensor(expected))
    assert torch.equal(between(b, a), between(a, b))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0.1, 0.1, 0.5), "A box has four numbers x1, y1, x2, y2; that of the cat has 3"),
        ((0, 0, 512, 512), "shares of the picture, 0 to 1; that of the cat is .*Divide pixels"),
        ((-0.1, 0, 0.5, 0.5), "shares of the picture"),
        ((math.nan, 0, 0.5, 0.5), "shares of the picture"),
        ((0.5, 0, 0.5, 1), "that of the cat is .*x1 >= x2"),
        ((0, 0.7, 0.5, 0.2), "x1 >= x2 or y1 >= y2"),
    ],
)
def test_what_is_no_box_is_said(box: tuple[float, ...], message: str):
    with pytest.raises(ValueError, match=message):
        check_box(box, "the cat")


def test_a_box_may_fill_the_picture():
    assert check_box([0, 0, 1, 1], "the cat") == (0.0, 0.0, 1.0, 1.0)
