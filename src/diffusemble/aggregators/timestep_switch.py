"""Timestep switch: experts for high and for low noise, one after the other (eDiff-I, arXiv 2211.01324)."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor
from torch.nn.functional import one_hot

from diffusemble.aggregators.base import CombinerOptions, Context, Sizes
from diffusemble.aggregators.router import Router

TIMESTEPS = 1000  # of the schedules that Stable Diffusion's models were trained with


class TimestepSwitchOptions(CombinerOptions):
    """When to switch.

    Attributes:
        thresholds: n - 1 falling timesteps: the first expert runs at and above the first one, the last expert below
            the last one. Equal parts of 1000 timesteps by default.

    Raises:
        ValueError: thresholds that do not fall.
    """

    thresholds: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _fall(self) -> TimestepSwitchOptions:
        if any(low >= high for high, low in pairwise(self.thresholds or ())):
            raise ValueError(
                f"thresholds must fall, because drawing starts at high timesteps with the first expert; got "
                f"{list(self.thresholds or ())}. Sort them from high to low, and the experts with them."
            )
        return self


class TimestepSwitch(Router):
    """The timestep decides who runs the whole step; there is nothing to learn.

    Raises:
        ValueError: the number of thresholds does not fit the number of experts.
    """

    Options: ClassVar[type[TimestepSwitchOptions]] = TimestepSwitchOptions
    options: TimestepSwitchOptions

    def __init__(self, sizes: Sizes, options: TimestepSwitchOptions) -> None:
        super().__init__(sizes, options, (0,))
        n, thresholds = sizes.experts, options.thresholds
        if thresholds is None:
            thresholds = tuple(TIMESTEPS * (n - 1 - index) / n for index in range(n - 1))
        if len(thresholds) != n - 1:
            raise ValueError(
                f"{n} experts switch at {n - 1} timesteps; got {len(thresholds)} thresholds: {list(thresholds)}. Give "
                f"one fewer than experts."
            )
        self.thresholds = thresholds

    def route(self, point: int, feature: Tensor, context: Context) -> Float[Tensor, "b n"]:
        """Gates from the timesteps of ``context``."""
        passed = context.timestep[:, None] < torch.tensor(self.thresholds, device=feature.device)
        return one_hot(passed.sum(dim=1), self.sizes.experts).to(feature.dtype)
