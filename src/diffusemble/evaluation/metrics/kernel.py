"""Kernel distances (squared maximum mean discrepancies) between sets of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from diffusemble.evaluation.features import FeatureNet as ImagenetFeatures
from diffusemble.evaluation.metrics.base import Device, FeatureNet, Kind
from diffusemble.evaluation.metrics.clip import ClipFeatures
from diffusemble.evaluation.metrics.inception import Inception
from diffusemble.evaluation.metrics.states import FeatureState
from diffusemble.evaluation.statistics import clip_discrepancy, kernel_distance


class KernelDistance:
    """Unbiased, with the kernel (x·y / d + 1)³ (Binkowski et al. 2018); lower is better, a little below 0 is possible.

    Taken over all pairs at once, not over random subsets: the same expectation, no seed, less noise.
    """

    kind: ClassVar[Kind] = "set"
    higher_is_better: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = True
    features: ClassVar[str]

    def __init__(self, net: FeatureNet) -> None:
        self.net = net

    def state(self) -> FeatureState:
        """An empty state."""
        return FeatureState(kernel_distance)


class KID(KernelDistance):
    """On the 2,048 features of the Inception graph of 2015."""

    features = "inception"

    @classmethod
    def load(cls, weights: Path | None = None, device: Device = "cpu") -> KID:
        """With the published weights."""
        return cls(Inception.load(weights, device))


class KIDMobileNet(KernelDistance):
    """On MobileNetV2; not comparable with KID."""

    features = "mobilenet-v2"

    @classmethod
    def load(cls, weights: Path | None = None, device: Device = "cpu") -> KIDMobileNet:
        """With the weights of an installed package; ``weights`` is not used."""
        return cls(ImagenetFeatures(cls.features, device))


class KIDEfficientNet(KIDMobileNet):
    """On EfficientNet-Lite0; not comparable with KID."""

    features = "efficientnet-lite0"


class CMMD(KernelDistance):
    """Gaussian kernel of width 10 on unit features of CLIP ViT-L/14 at 336 pixels, × 1000 (Jayasumana et al. 2024)."""

    features = "clip-l-336"

    @classmethod
    def load(cls, weights: Path | None = None, device: Device = "cpu") -> CMMD:
        """With the published weights."""
        return cls(ClipFeatures.load(weights, device))

    def state(self) -> FeatureState:
        """An empty state."""
        return FeatureState(clip_discrepancy)
