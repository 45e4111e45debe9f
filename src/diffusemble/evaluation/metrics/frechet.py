"""Fréchet distances between sets of pictures: FID and its relatives on other features."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from diffusemble.evaluation.features import FeatureNet as ImagenetFeatures
from diffusemble.evaluation.metrics.base import Device, FeatureNet, Kind
from diffusemble.evaluation.metrics.dinov2 import Dinov2
from diffusemble.evaluation.metrics.inception import Inception
from diffusemble.evaluation.metrics.states import MomentState


class FrechetDistance:
    """Distance of two Gaussians with the sets' means and covariances (Heusel et al. 2017, eq. 6); lower is better."""

    kind: ClassVar[Kind] = "set"
    higher_is_better: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = True
    features: ClassVar[str]

    def __init__(self, net: FeatureNet) -> None:
        self.net = net

    def state(self) -> MomentState:
        """An empty state."""
        return MomentState()


class FID(FrechetDistance):
    """On the 2,048 features of the Inception graph of 2015."""

    features = "inception"

    @classmethod
    def load(cls, weights: Path | None = None, device: Device = "cpu") -> FID:
        """With the published weights."""
        return cls(Inception.load(weights, device))


class FDDinov2(FrechetDistance):
    """On DINOv2 ViT-L/14 (Stein et al. 2023): closer to what people see than FID."""

    features = "dinov2"

    @classmethod
    def load(cls, weights: Path | None = None, device: Device = "cpu") -> FDDinov2:
        """With the published weights."""
        return cls(Dinov2.load(weights, device))


class FIDMobileNet(FrechetDistance):
    """On MobileNetV2; not comparable with FID."""

    features = "mobilenet-v2"

    @classmethod
    def load(cls, weights: Path | None = None, device: Device = "cpu") -> FIDMobileNet:
        """With the weights of an installed package; ``weights`` is not used."""
        return cls(ImagenetFeatures(cls.features, device))


class FIDEfficientNet(FIDMobileNet):
    """On EfficientNet-Lite0; not comparable with FID."""

    features = "efficientnet-lite0"
