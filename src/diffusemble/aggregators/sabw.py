"""SABW, the spatial-aware block-wise aggregator of AFA (ICLR 2025, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusemble.aggregators.base import Aggregator, AggregatorOptions, Context, Sizes
from diffusemble.aggregators.trunk import PRESETS, Trunk, TrunkOptions, pooled


class SABWOptions(TrunkOptions, AggregatorOptions):
    """Points, the network's size, and what it may use; every ablation of AFA's table 3 is a value of one of them.

    Attributes:
        spatial: one map per expert; without it one scalar per expert, whose logit is the mean of the map's.
    """

    spatial: bool = True


class SABW(Aggregator):
    """One ``Trunk`` per aggregated point; weights are the softmax of its logits over the experts (AFA, eq. 4-5)."""

    Options: ClassVar[type[SABWOptions]] = SABWOptions
    presets = PRESETS
    options: SABWOptions

    def __init__(self, sizes: Sizes, options: SABWOptions) -> None:
        super().__init__(sizes, options)
        self.at = nn.ModuleDict(
            {str(point): Trunk(sizes.experts * sizes.channels[point], sizes, options) for point in sorted(self.points)}
        )

    def weigh(self, point: int, features: Sequence[Tensor], context: Context) -> Float[Tensor, "b n h w"]:
        """Softmax over the experts, taken in float32 at least."""
        logits = self.at[str(point)](torch.cat(list(features), dim=1), context)
        if not self.options.spatial:
            logits = pooled(logits)[:, :, None, None].expand_as(logits)
        exact = torch.promote_types(logits.dtype, torch.float32)
        return logits.to(exact).softmax(dim=1).to(features[0].dtype)
