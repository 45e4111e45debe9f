"""Pictures as the nets expect them, without torchvision: rounded to 8 bits as a PNG would be, resized by Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def checked(images: Tensor) -> Tensor:
    """The images, if they are ``[b 3 h w]`` in [0, 1].

    Raises:
        ValueError: another shape or range.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(
            f"Metrics take RGB pictures [b 3 h w] with b > 0; got {tuple(images.shape)}. Stack them in that order."
        )
    low, high = images.aminmax()
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(
            f"Metrics take pictures in [0, 1]; these lie in [{low:.3g}, {high:.3g}]. "
            f"Divide bytes by 255, or map [-1, 1] by x / 2 + 0.5."
        )
    return images.detach().float()


def to_bytes(images: Tensor) -> Tensor:
    """uint8 ``[b 3 h w]`` of images in [0, 1]."""
    return (checked(images).clamp(0, 1) * 255).round().byte()


@dataclass(frozen=True)
class Preparation:
    """How a net wants its pictures.

    Attributes:
        size: side of the square, in pixels.
        mean, std: normalisation of [0, 1], per channel.
        fit: how a picture becomes square: ``"crop"`` cuts out the centre, as CLIP does; ``"pad"`` adds black, as HPSv2
            does; ``"stretch"`` resizes both sides.
    """

    size: int
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    fit: Literal["crop", "pad", "stretch"] = "crop"

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised ``[b 3 size size]`` on the CPU, by Pillow's bicubic filter on bytes, which antialiases."""
        arrays = to_bytes(images).permute(0, 2, 3, 1).cpu().numpy()
        sized = np.stack([np.asarray(self.resize(Image.fromarray(array))) for array in arrays])
        return self.normalise(torch.from_numpy(sized).permute(0, 3, 1, 2).float() / 255)

    def resize(self, picture: Image.Image) -> Image.Image:
        """One picture at the net's size."""
        if self.fit == "stretch":
            return picture.resize((self.size, self.size), Image.Resampling.BICUBIC)
        if self.fit == "pad":
            sides = [round(side * self.size / max(picture.size)) for side in picture.size]
        else:
            short = min(picture.size)
            sides = [self.size if side == short else int(self.size * side / short) for side in picture.size]
        sized = picture.resize((sides[0], sides[1]), Image.Resampling.BICUBIC)
        # A corner that lies outside the picture is filled with black, so one cut does for both.
        left, top = ((side - self.size) // 2 if side > self.size else -((self.size - side) // 2) for side in sides)
        return sized.crop((left, top, left + self.size, top + self.size))

    def normalise(self, images: Tensor) -> Tensor:
        """(x - mean) / std per channel of ``[b 3 h w]``."""
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std


def resize_like_tensorflow(images: Tensor, size: int) -> Tensor:
    """Bilinear resize ``[b c h w]`` to ``[b c size size]`` as TensorFlow 1 did it, which Inception's graph contains.

    Output pixel i reads the input at i · h / size: the corners of the first pixels coincide (not the centres, as in
    ``F.interpolate``), and nothing is smoothed when shrinking.
    """
    for axis in (2, 3):
        low, high, share = _neighbours(images.shape[axis], size, images)
        shape = [1] * 4
        shape[axis] = size
        weight = share.view(shape)
        images = images.index_select(axis, low) * (1 - weight) + images.index_select(axis, high) * weight
    return images


def _neighbours(old: int, new: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    place = torch.arange(new, dtype=like.dtype, device=like.device) * (old / new)
    low = place.floor().long().clamp(max=old - 1)
    return low, (low + 1).clamp(max=old - 1), place - low
