"""Distances between sets of pictures: Fréchet and kernel distances, each on several feature nets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from diffusemble.evaluation.features import FeatureNet as ImagenetFeatures
from diffusemble.evaluation.metrics.base import Device, FeatureNet, Kind, State
from diffusemble.evaluation.metrics.clip import ClipFeatures
from diffusemble.evaluation.metrics.dinov2 import Dinov2
from diffusemble.evaluation.metrics.inception import Inception
from diffusemble.evaluation.metrics.states import FeatureState, MomentState
from diffusemble.evaluation.statistics import clip_discrepancy, kernel_distance

if TYPE_CHECKING:
    from typing import Self


class SetMetric:
    """One number for a set of pictures, by default a distance to a reference set; lower is better.

    Attributes:
        features: name of the features, equal for metrics that can share them; see ``feature_net``.
        needs_reference: whether a state's ``compute`` wants the state of a reference set.
        net: what gives the features.
    """

    kind: ClassVar[Kind] = "set"
    higher_is_better: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = True
    features: ClassVar[str]

    def __init__(self, net: FeatureNet) -> None:
        self.net = net

    @classmethod
    def load(cls, weights: Path | None = None, device: Device = "cpu") -> Self:
        """With the published weights.

        Raises:
            FileNotFoundError: they are missing.
        """
        return cls(feature_net(cls.features, weights, device))

    def state(self) -> State:
        """An empty state."""
        raise NotImplementedError


def feature_net(name: str, weights: Path | None = None, device: Device = "cpu") -> FeatureNet:
    """The net behind a metric's ``features``; those of installed packages do not look into the folder ``weights``."""
    if name == "clip-l-336":
        return ClipFeatures.load(weights, device)
    if name == "dinov2":
        return Dinov2.load(weights, device)
    if name.startswith("inception"):
        return Inception.load(weights, device, logits=name == "inception-logits")
    return ImagenetFeatures(name, device)


class FID(SetMetric):
    """Distance of two Gaussians with the sets' means and covariances (Heusel et al. 2017, eq. 6).

    On the 2,048 features of the Inception graph of 2015.
    """

    features = "inception"

    def state(self) -> MomentState:
        """An empty state."""
        return MomentState()


class FDDinov2(FID):
    """On DINOv2 ViT-L/14 (Stein et al. 2023): closer to what people see than FID."""

    features = "dinov2"


class FIDMobileNet(FID):
    """On MobileNetV2; not comparable with FID."""

    features = "mobilenet-v2"


class FIDEfficientNet(FID):
    """On EfficientNet-Lite0; not comparable with FID."""

    features = "efficientnet-lite0"


class KID(SetMetric):
    """Unbiased, with the kernel (x·y / d + 1)³ (Binkowski et al. 2018); a little below 0 is possible.

    Taken over all pairs at once, not over random subsets: the same expectation, no seed, less noise. On the 2,048
    features of the Inception graph of 2015.
    """

    features = "inception"

    def state(self) -> FeatureState:
        """An empty state."""
        return FeatureState(kernel_distance)


class KIDMobileNet(KID):
    """On MobileNetV2; not comparable with KID."""

    features = "mobilenet-v2"


class KIDEfficientNet(KID):
    """On EfficientNet-Lite0; not comparable with KID."""

    features = "efficientnet-lite0"


class CMMD(SetMetric):
    """Gaussian kernel of width 10 on unit features of CLIP ViT-L/14 at 336 pixels, × 1000 (Jayasumana et al. 2024)."""

    features = "clip-l-336"

    def state(self) -> FeatureState:
        """An empty state."""
        return FeatureState(clip_discrepancy)
