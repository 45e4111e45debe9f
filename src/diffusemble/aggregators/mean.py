"""Block-wise mean: the control that has nothing to learn (AFA, table 3, "block-wise averaging")."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from diffusemble.aggregators.base import Aggregator, Context


class Mean(Aggregator):
    """Every expert has the same weight everywhere."""

    def weigh(self, point: int, features: Sequence[Tensor], context: Context) -> Tensor:
        """Maps of 1/n, ``[b n h w]``."""
        batch, _, height, width = features[0].shape
        n = len(features)
        return features[0].new_full((), 1 / n).expand(batch, n, height, width)
