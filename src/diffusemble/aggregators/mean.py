"""Mean of the features: the control that has nothing to learn (AFA, table 3, block-wise and noise averaging)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from diffusemble.aggregators.base import Aggregator, AggregatorOptions, Context, Sizes
from diffusemble.fusion import shares

Weight = Annotated[float, Field(ge=0)]


class MeanOptions(AggregatorOptions):
    """At which points, and ``weights``: one number per expert, in any unit; equal by default."""

    weights: tuple[Weight, ...] | None = None


class Mean(Aggregator):
    """Every expert has one weight everywhere. At the last point alone this is ``fusion.mean`` of the predictions.

    Raises:
        ValueError: not one weight per expert, or all weights are zero.
    """

    Options: ClassVar[type[AggregatorOptions]] = MeanOptions
    options: MeanOptions

    def __init__(self, sizes: Sizes, options: MeanOptions) -> None:
        super().__init__(sizes, options)
        self.shares = shares(options.weights, sizes.experts)

    def weigh(self, point: int, features: Sequence[Tensor], context: Context) -> Float[Tensor, "b n h w"]:
        """The experts' shares of the weights, at every position."""
        batch, _, height, width = features[0].shape
        return features[0].new_tensor(self.shares).view(1, -1, 1, 1).expand(batch, -1, height, width)
