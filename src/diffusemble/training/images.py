"""Encoded picture files to square tensors."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

Crop = Literal["center", "random"]


@dataclass(frozen=True)
class Square:
    """A square cut from a picture.

    Attributes:
        pixels: ``[3 h w]`` in [-1, 1], the range VAEs take.
        original: height and width of the picture, upright.
        corner: top and left of the square in the scaled picture.
    """

    pixels: Float[Tensor, "3 h w"]
    original: tuple[int, int]
    corner: tuple[int, int]


def read_square(data: bytes, size: int, crop: Crop, generator: torch.Generator) -> Square:
    """Decode, turn upright, scale the shorter side to ``size`` and cut a square.

    Args:
        data: a picture file that PIL reads; transparency becomes white.
        size: side of the square in pixels.
        crop: cut from the middle, or from a place that ``generator`` draws.
        generator: randomness of the crop.

    Raises:
        OSError: the bytes are no picture, or a damaged one.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            picture = _on_white(ImageOps.exif_transpose(opened))
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:  # how PIL reports some damaged files
        raise OSError(str(error)) from error
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    original = (picture.height, picture.width)
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    left, top = _corner(width - size, height - size, crop, generator)
    pixels = torch.from_numpy(np.array(picture.crop((left, top, left + size, top + size))))
    return Square(pixels.permute(2, 0, 1).float() / 127.5 - 1, original, (top, left))


def _corner(free_x: int, free_y: int, crop: Crop, generator: torch.Generator) -> tuple[int, int]:
    if crop == "center":
        return free_x // 2, free_y // 2
    x, y = torch.rand(2, generator=generator).tolist()
    return int(x * (free_x + 1)), int(y * (free_y + 1))


def _on_white(picture: Image.Image) -> Image.Image:
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture.convert("RGBA"))
    return page.convert("RGB")
