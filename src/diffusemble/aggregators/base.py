"""What every combiner of experts is, and every aggregator: N features of one point in, one feature and weights out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PointChoice = Literal["all", "last"] | tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """Widths an aggregator is built for.

    Attributes:
        channels: channels of every point's feature, in running order; the last entry is the denoisers' output.
        time: width of the time embedding.
        text: width of the text embedding.
        experts: number n of denoisers.
        latents: channels of the latents that enter the denoisers. Only routers read them, so sizes that differ in
            nothing else are equal.
    """

    channels: tuple[int, ...]
    time: int
    text: int
    experts: int = 1
    latents: int = field(default=4, compare=False)


@dataclass(frozen=True)
class Context:
    """What is known beside the features.

    Attributes:
        text: text embedding ``[b s d]``, the mean over the experts.
        time: time embedding ``[b e]``, the mean over the experts.
        sample: noisy latents ``[b c h w]`` that all experts denoise.
        timestep: their timesteps ``[b]``, in the sampler's unit.
        mask: which text tokens belong to the prompt, ``[b s]``, where others only fill it up; None: all.
    """

    text: Tensor
    time: Tensor
    sample: Tensor
    timestep: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class Mixed:
    """Aggregated feature ``[b c h w]`` and the weight ``[b n h w]`` of every expert at every position."""

    feature: Tensor
    maps: Tensor


class CombinerOptions(BaseModel):
    """Options of a combiner: a closed set, which nothing changes later."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class AggregatorOptions(CombinerOptions):
    """Options every aggregator has.

    Attributes:
        points: at which points the experts' features are aggregated, by index in running order. ``"last"`` leaves
            only the predictions: with equal weights, that is noise averaging. The last point is always among them.
    """

    points: PointChoice = "all"


class Combiner(nn.Module):
    """How n experts draw as one: either all run and an ``Aggregator`` mixes them, or a ``Router`` chooses who runs.

    Subclasses set ``Options``, and ``presets`` if some of their options have names together.

    Attributes:
        points: indices of the points where it acts.
        anchor: the index that must be among them, and which point of a stage counts for it: the last one (-1) where
            features are mixed after a block, the first one (0) where a choice is made before it.
    """

    Options: ClassVar[type[CombinerOptions]] = CombinerOptions
    presets: ClassVar[Mapping[str, Mapping[str, int]]] = {}
    anchor: ClassVar[int] = -1

    def __init__(self, sizes: Sizes, options: CombinerOptions, points: PointChoice) -> None:
        super().__init__()
        self.sizes = sizes
        self.options = options
        self.points = _chosen(points, len(sizes.channels), self.anchor)

    def fits(self, sizes: Sizes) -> bool:
        """Whether it works with experts of these sizes."""
        return self.sizes == sizes


class Aggregator(Combiner):
    """Weights the features of n experts at k points; subclasses implement ``weigh``.

    Attributes:
        gradient_checkpointing: weigh again in the backward pass, instead of keeping what weighing leaves.

    Raises:
        ValueError: ``options.points`` names a point that does not exist or leaves the last one out.
    """

    Options: ClassVar[type[AggregatorOptions]] = AggregatorOptions
    options: AggregatorOptions
    gradient_checkpointing = False

    def __init__(self, sizes: Sizes, options: AggregatorOptions) -> None:
        super().__init__(sizes, options, options.points)

    def weigh(self, point: int, features: Sequence[Tensor], context: Context) -> Float[Tensor, "b n h w"]:
        """Weight of every expert at every position; sums to one over the experts."""
        raise NotImplementedError

    def forward(self, point: int, features: Sequence[Tensor], context: Context) -> Mixed:
        """Aggregate the experts' features ``n x [b c h w]`` at ``point``."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            maps = checkpoint(self.weigh, point, features, context, use_reentrant=False)
        else:
            maps = self.weigh(point, features, context)
        return Mixed(weighted_sum(features, maps), maps)


def weighted_sum(features: Sequence[Tensor], maps: Float[Tensor, "b n h w"]) -> Float[Tensor, "b c h w"]:
    """y = Σ_i A_i ⊙ y_i for features y_i ``[b c h w]`` and maps A ``[b n h w]`` (AFA, eq. 5)."""
    total = features[0] * maps[:, :1]
    for index in range(1, len(features)):
        total.addcmul_(features[index], maps[:, index : index + 1])
    return total


def weighted_tokens(tokens: Sequence[Float[Tensor, "b s d"]], maps: Float[Tensor, "b n h w"]) -> Float[Tensor, "b s d"]:
    """Text tokens have no place in the picture: an expert's get one weight, the mean of its map over all positions."""
    weights = maps.mean(dim=(2, 3))
    total = tokens[0] * weights[:, :1, None]
    for index in range(1, len(tokens)):
        total.addcmul_(tokens[index], weights[:, index, None, None])
    return total


def _chosen(points: PointChoice, count: int, anchor: int) -> frozenset[int]:
    if points == "all":
        return frozenset(range(count))
    needed = range(count)[anchor]
    chosen = frozenset({needed} if points == "last" else points)
    if needed not in chosen or not chosen <= frozenset(range(count)):
        which, why, names = _ANCHORS[anchor]
        raise ValueError(
            f"points must be indices from 0 to {count - 1} and contain the {which} one, because {why}; got "
            f"{sorted(chosen)}. Add {needed}, or choose {names}."
        )
    return chosen


_ANCHORS = {
    -1: ("last", "the experts' predictions always become one", "'all' or 'last'"),
    0: ("first", "somebody must be chosen to begin", "'all'"),
}
