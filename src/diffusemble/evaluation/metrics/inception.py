"""Inception-v3 as FID and the Inception score use it: TensorFlow's graph of 2015-12-05 in plain torch.

Architecture: Szegedy et al. 2015 (arXiv 1512.00567). The graph differs from the usual Inception-v3 in four ways: it has
1008 classes, averages do not count the padding, the last block pools by maximum, and it resizes inside. Names of the
parts are those of the converted weights in circulation (pt_inception-2015-12-05-6726825d.pth), so that they load as
they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusemble.evaluation.metrics.base import Device
from diffusemble.evaluation.metrics.pixels import resize_like_tensorflow, to_bytes
from diffusemble.evaluation.metrics.weights import Published, fill, read_tensors

Pair = tuple[int, int]
SIZE, WIDTH, CLASSES = 299, 2048, 1008
WEIGHTS = Published(
    "pt_inception-2015-12-05-6726825d.pth",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
)


@dataclass(frozen=True)
class Conv:
    """A convolution of a block: ``source`` is the part it reads, the block's input if empty."""

    name: str
    channels: int
    kernel: Pair = (1, 1)
    source: str = ""
    stride: int = 1


@dataclass(frozen=True)
class Block:
    """Parts in order, the parts whose results are joined, and the pooled branch that comes last.

    ``pool`` is ``"mean"`` or ``"max"``; it is followed by the convolution ``branch_pool`` of ``pooled`` channels, or,
    where that is 0, has stride 2 and stands alone.
    """

    parts: tuple[Conv, ...]
    joined: tuple[str, ...]
    pool: str = "mean"
    pooled: int = 0


def _chain(name: str, *steps: tuple[int, Pair], stride: int = 1) -> tuple[Conv, ...]:
    """Convolutions ``name_1``, ``name_2`` … one after the other; the last has the stride."""
    return tuple(
        Conv(f"{name}_{i + 1}", channels, kernel, f"{name}_{i}" if i else "", stride if i + 1 == len(steps) else 1)
        for i, (channels, kernel) in enumerate(steps)
    )


def _block_a(pooled: int) -> Block:
    five = _chain("branch5x5", (48, (1, 1)), (64, (5, 5)))
    three = _chain("branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3)))
    joined = ("branch1x1", "branch5x5_2", "branch3x3dbl_3")
    return Block((Conv("branch1x1", 64), *five, *three), joined, pooled=pooled)


def _block_b() -> Block:
    three = _chain("branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3)), stride=2)
    return Block((Conv("branch3x3", 384, (3, 3), stride=2), *three), ("branch3x3", "branch3x3dbl_3"), "max")


def _block_c(inner: int) -> Block:
    flat, tall = (1, 7), (7, 1)
    seven = _chain("branch7x7", (inner, (1, 1)), (inner, flat), (192, tall))
    twice = _chain("branch7x7dbl", (inner, (1, 1)), (inner, tall), (inner, flat), (inner, tall), (192, flat))
    joined = ("branch1x1", "branch7x7_3", "branch7x7dbl_5")
    return Block((Conv("branch1x1", 192), *seven, *twice), joined, pooled=192)


def _block_d() -> Block:
    three = _chain("branch3x3", (192, (1, 1)), (320, (3, 3)), stride=2)
    seven = _chain("branch7x7x3", (192, (1, 1)), (192, (1, 7)), (192, (7, 1)), (192, (3, 3)), stride=2)
    return Block((*three, *seven), ("branch3x3_2", "branch7x7x3_4"), "max")


def _block_e(pool: str) -> Block:
    parts = [Conv("branch1x1", 320), Conv("branch3x3_1", 384)]
    parts += _chain("branch3x3dbl", (448, (1, 1)), (384, (3, 3)))
    forks = [("branch3x3_2", "branch3x3_1"), ("branch3x3dbl_3", "branch3x3dbl_2")]
    for name, source in forks:
        parts += [Conv(f"{name}a", 384, (1, 3), source), Conv(f"{name}b", 384, (3, 1), source)]
    joined = ("branch1x1", "branch3x3_2a", "branch3x3_2b", "branch3x3dbl_3a", "branch3x3dbl_3b")
    return Block(tuple(parts), joined, pool, 192)


STEM = (
    ("Conv2d_1a_3x3", 32, 3, 2, 0),
    ("Conv2d_2a_3x3", 32, 3, 1, 0),
    ("Conv2d_2b_3x3", 64, 3, 1, 1),
    ("pool", 0, 3, 2, 0),
    ("Conv2d_3b_1x1", 80, 1, 1, 0),
    ("Conv2d_4a_3x3", 192, 3, 1, 0),
    ("pool", 0, 3, 2, 0),
)  # name, channels, kernel, stride, padding
BLOCKS = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": _block_b(),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": _block_d(),
    "Mixed_7b": _block_e("mean"),
    "Mixed_7c": _block_e("max"),
}


class ConvNormRelu(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, channels: tuple[int, int], kernel: Pair, stride: int = 1, padding: Pair = (0, 0)) -> None:
        super().__init__()
        self.conv = nn.Conv2d(*channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels[1], eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """``[b c h w]`` to ``[b c' h' w']``."""
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """One block of parallel branches."""

    def __init__(self, channels: int, block: Block) -> None:
        super().__init__()
        self.block = block
        widths = {"": channels}
        for part in block.parts:
            padding = (0, 0) if part.stride > 1 else (part.kernel[0] // 2, part.kernel[1] // 2)
            sizes = (widths[part.source], part.channels)
            self.add_module(part.name, ConvNormRelu(sizes, part.kernel, part.stride, padding))
            widths[part.name] = part.channels
        if block.pooled:
            self.branch_pool = ConvNormRelu((channels, block.pooled), (1, 1))
        self.channels = sum(widths[name] for name in block.joined) + (block.pooled or channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[b c h w]`` to ``[b channels h' w']``."""
        found = {"": x}
        for part in self.block.parts:
            found[part.name] = self.get_submodule(part.name)(found[part.source])
        return torch.cat([*(found[name] for name in self.block.joined), self._pool(x)], dim=1)

    def _pool(self, x: Tensor) -> Tensor:
        if not self.block.pooled:
            return F.max_pool2d(x, 3, 2)
        if self.block.pool == "max":
            pooled = F.max_pool2d(x, 3, 1, 1)
        else:
            pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        branch: Tensor = self.branch_pool(pooled)
        return branch


class InceptionV3(nn.Module):
    """The net: features ``[b 2048]`` of bytes ``[b 3 h w]``; ``fc`` makes them logits of 1008 classes."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for name, width, kernel, stride, padding in STEM:
            if width:
                sizes = (channels, width)
                self.add_module(name, ConvNormRelu(sizes, (kernel, kernel), stride, (padding, padding)))
                channels = width
        for name, block in BLOCKS.items():
            mixed = Mixed(channels, block)
            self.add_module(name, mixed)
            channels = mixed.channels
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, pictures: Tensor) -> Tensor:
        """Features ``[b 2048]`` of pictures ``[b 3 h w]`` in 0 … 255 (the graph's own range)."""
        x = (resize_like_tensorflow(pictures.to(self.fc.weight.dtype), SIZE) - 128) / 128
        for name, width, kernel, stride, _ in STEM:
            x = self.get_submodule(name)(x) if width else F.max_pool2d(x, kernel, stride)
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))


class Inception:
    """Images to Inception's features, or to its logits without bias as the Inception score takes them."""

    def __init__(self, net: InceptionV3, device: Device = "cpu", logits: bool = False) -> None:
        self.net = net.requires_grad_(False).eval().to(device)
        self.device, self.logits = device, logits

    @classmethod
    def load(cls, weights: Path | None, device: Device = "cpu", logits: bool = False) -> Inception:
        """With the published weights.

        Raises:
            FileNotFoundError: they are not in the folder.
            ValueError: the file is another net's.
        """
        file, net = WEIGHTS.find(weights), InceptionV3()
        fill(net, read_tensors(file), str(file))
        return cls(net, device, logits)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features ``[b 2048]`` or logits ``[b 1008]`` of images ``[b 3 h w]`` in [0, 1], on the CPU."""
        features: Tensor = self.net(to_bytes(images).to(self.device))
        if self.logits:
            features = features @ self.net.fc.weight.T
        return features.float().cpu()
