"""Composable Diffusion: guidance of several models added up; AND and NOT (Liu et al., arXiv 2206.01714)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from diffusemble.config.schema import Schema
from diffusemble.latent.base import Moment, Step
from diffusemble.latent.combine.members import as_kind, check_same_latents, returned, unprompted


class ComposableOptions(Schema):
    """How guidance adds up.

    Attributes:
        normalise: divide weights by the sum of their magnitudes. As published (off), every member adds its whole
            guidance, so n like members guide n times as strongly; on, they guide as one.
    """

    normalise: bool = False


class Composable:
    """ε = u_0 + Σ_m w_m g_m (c_m - u_m), the base's u_0, for all members (equations 11 and 12).

    c and u are predictions with and without the prompt, g each member's own guidance scale. A positive weight means
    AND, a negative one NOT. A member alone goes on with what it predicts.

    Raises:
        ValueError: members of different latents, or one without guidance: what its prompt adds is unknown.
    """

    Options: ClassVar[type[Schema]] = ComposableOptions

    def __init__(self, options: ComposableOptions) -> None:
        self.moment: Moment = "prediction"
        self.options = options

    def __call__(self, steps: Sequence[Step]) -> Sequence[Tensor]:
        """The composed prediction, in each member's kind."""
        if len(steps) == 1:
            return [steps[0].prediction]
        check_same_latents(steps, "composable")
        kind = steps[0].kind
        without = [as_kind(unprompted(step, "composable"), step, kind).float() for step in steps]
        total = sum(abs(step.weight) for step in steps) if self.options.normalise else 1.0
        added = [
            # What guidance added, whatever arithmetic the pipeline uses: p - u = g (c - u).
            step.weight / total * (as_kind(step.prediction, step, kind).float() - u)
            for step, u in zip(steps, without, strict=True)
        ]
        return returned(without[0] + torch.stack(added).sum(dim=0), steps)
