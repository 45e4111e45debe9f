"""What every router is: the current feature in, the one expert that runs next out, for every sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusemble.aggregators.base import Combiner, Context, Sizes


@dataclass(frozen=True)
class Choice:
    """Who runs next: one-hot ``gates [b n]``, and the same as ``maps [b n h w]`` over the feature that was read.

    Gates that carry a gradient ask for all experts to run; without one, only the chosen expert runs.
    """

    gates: Tensor
    maps: Tensor


class Router(Combiner):
    """Chooses one of n experts for every sample before each of ``points``; the choice holds until the next of them.

    Subclasses implement ``route``.

    Raises:
        ValueError: the points do not exist, or leave the first one out.
    """

    anchor = 0

    def route(self, point: int, feature: Tensor, context: Context) -> Float[Tensor, "b n"]:
        """One-hot gates, for the ``feature [b c h w]`` that enters block ``point``."""
        raise NotImplementedError

    def forward(self, point: int, feature: Tensor, context: Context) -> Choice:
        """Choose who runs block ``point`` and those after it, up to the next of ``points``."""
        gates = self.route(point, feature, context).to(feature.dtype)
        return Choice(gates, gates[:, :, None, None].expand(-1, -1, *feature.shape[2:]))

    def fits(self, sizes: Sizes) -> bool:
        """Whether it works with experts of these sizes; before the first block it reads their latents."""
        return super().fits(sizes) and self.sizes.latents == sizes.latents

    def channels(self, point: int) -> int:
        """Channels of the feature that enters block ``point``."""
        return self.sizes.channels[point - 1] if point else self.sizes.latents


def one_hot(scores: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """1 for the largest score of each sample (the first of equal ones), 0 for the others; without a gradient."""
    return torch.zeros_like(scores).scatter(1, scores.detach().argmax(dim=1, keepdim=True), 1.0)
