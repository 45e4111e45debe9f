"""What every aggregator is: N features of one point in, one feature and its weights out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

PointChoice = Literal["all", "last"] | tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """Widths an aggregator is built for.

    Attributes:
        channels: channels of every point's feature, in running order; the last entry is the denoisers' output.
        time: width of the time embedding.
        text: width of the text embedding.
        experts: number n of denoisers.
    """

    channels: tuple[int, ...]
    time: int
    text: int
    experts: int = 1


@dataclass(frozen=True)
class Context:
    """What is known beside the features.

    Attributes:
        text: text embedding ``[b s d]``, the mean over the experts.
        time: time embedding ``[b e]``, the mean over the experts.
        sample: noisy latents ``[b c h w]`` that all experts denoise.
        timestep: their timesteps ``[b]``, in the sampler's unit.
    """

    text: Tensor
    time: Tensor
    sample: Tensor
    timestep: Tensor


@dataclass(frozen=True)
class Mixed:
    """Aggregated feature ``[b c h w]`` and the weight ``[b n h w]`` of every expert at every position."""

    feature: Tensor
    maps: Tensor


class AggregatorOptions(BaseModel):
    """Options every aggregator has.

    Attributes:
        points: at which points the experts' features are aggregated, by index in running order. ``"last"`` leaves
            only the predictions: with equal weights, that is noise averaging. The last point is always among them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    points: PointChoice = "all"


class Aggregator(nn.Module):
    """Weights the features of n experts at k points.

    Subclasses set ``Options``, and ``presets`` if some of their options have names together, and implement ``weigh``.

    Raises:
        ValueError: ``options.points`` names a point that does not exist or leaves the last one out.
    """

    Options: ClassVar[type[AggregatorOptions]] = AggregatorOptions
    presets: ClassVar[Mapping[str, Mapping[str, int]]] = {}

    def __init__(self, sizes: Sizes, options: AggregatorOptions) -> None:
        super().__init__()
        self.sizes = sizes
        self.options = options
        self.points = _chosen(options.points, len(sizes.channels))

    def weigh(self, point: int, features: Sequence[Tensor], context: Context) -> Float[Tensor, "b n h w"]:
        """Weight of every expert at every position; sums to one over the experts."""
        raise NotImplementedError

    def forward(self, point: int, features: Sequence[Tensor], context: Context) -> Mixed:
        """Aggregate the experts' features ``n x [b c h w]`` at ``point``."""
        maps = self.weigh(point, features, context)
        return Mixed(weighted_sum(features, maps), maps)


def weighted_sum(features: Sequence[Tensor], maps: Float[Tensor, "b n h w"]) -> Float[Tensor, "b c h w"]:
    """y = Σ_i A_i ⊙ y_i for features y_i ``[b c h w]`` and maps A ``[b n h w]`` (AFA, eq. 5)."""
    total = features[0] * maps[:, :1]
    for index in range(1, len(features)):
        total.addcmul_(features[index], maps[:, index : index + 1])
    return total


def _chosen(points: PointChoice, count: int) -> frozenset[int]:
    if points == "all":
        return frozenset(range(count))
    chosen = frozenset({count - 1} if points == "last" else points)
    if count - 1 not in chosen or not chosen <= frozenset(range(count)):
        raise ValueError(
            f"points must be indices from 0 to {count - 1} and contain the last one, because the experts' predictions "
            f"always become one; got {sorted(chosen)}. Add {count - 1}, or choose 'all' or 'last'."
        )
    return chosen
