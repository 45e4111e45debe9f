from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from diffusemble.training.images import read_square


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def stripes(width: int, height: int) -> Image.Image:
    """Column x has the grey value x."""
    return Image.fromarray(np.tile(np.arange(width, dtype=np.uint8), (height, 1))).convert("RGB")


def square(data: bytes, size: int, crop: str = "center", seed: int = 0) -> torch.Tensor:
    return read_square(data, size, crop, torch.Generator().manual_seed(seed)).pixels


def test_the_middle_is_cut_from_a_wide_picture() -> None:
    found = square(encoded(stripes(20, 8)), 8)
    assert found.shape == (3, 8, 8)
    assert torch.allclose(found[0, 0], torch.arange(6, 14) / 127.5 - 1)


def test_random_crops_reach_every_place_and_follow_the_seed() -> None:
    data = encoded(stripes(11, 8))
    starts = [int((square(data, 8, "random", seed)[0, 0, 0] + 1) * 127.5 + 0.5) for seed in range(40)]
    assert set(starts) == {0, 1, 2, 3}
    assert torch.equal(square(data, 8, "random", 3), square(data, 8, "random", 3))


@pytest.mark.parametrize("size", [(5, 30), (30, 5), (7, 7), (16, 16), (333, 101)])
def test_every_shape_becomes_the_asked_square(size: tuple[int, int]) -> None:
    assert square(encoded(Image.new("RGB", size, "red")), 16).shape == (3, 16, 16)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK", "I;16"])
def test_every_mode_of_pil_becomes_rgb(mode: str) -> None:
    picture = Image.new(mode, (9, 9))
    found = square(encoded(picture, "TIFF"), 9)
    assert found.shape == (3, 9, 9)
    assert found.abs().max() <= 1


def test_transparency_becomes_white() -> None:
    assert torch.equal(square(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0))), 4), torch.ones(3, 4, 4))


def test_the_orientation_in_exif_is_obeyed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    found = square(encoded(stripes(8, 8), exif=exif), 8)
    assert torch.allclose(found[0, 0], torch.arange(7, -1, -1) / 127.5 - 1)


@pytest.mark.parametrize("damage", [b"", b"no picture", encoded(stripes(64, 64))[:80], encoded(stripes(64, 64))[:-60]])
def test_damaged_files_raise_os_error(damage: bytes) -> None:
    with pytest.raises(OSError):
        square(damage, 8)
