"""MagicFusion between members: at every place the one draws whose prompt says most there (arXiv 2303.13126)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from diffusemble.config.schema import Schema
from diffusemble.fusion import Kernel, most_salient, saliency
from diffusemble.latent.base import Moment, Step
from diffusemble.latent.combine.members import as_kind, check_positive, check_same_latents, returned, unprompted
from diffusemble.latent.predictions import to_noise


class MagicFusionOptions(Schema):
    """How saliency is measured.

    Attributes:
        kernel: ``"reference"``, the published one, or ``"symmetric"`` (``fusion.smooth``).
        sharpness: a member's temperature k is this times its weight; the larger, the more sharply it claims its best
            places.
    """

    kernel: Kernel = "reference"
    sharpness: Annotated[float, Field(gt=0)] = 1.0


class MagicFusion:
    """The guided prediction of the most salient member at every place, for all members (``fusion.most_salient``).

    Raises:
        ValueError: members of different latents, one without guidance, or a weight that is not positive.
    """

    Options: ClassVar[type[Schema]] = MagicFusionOptions

    def __init__(self, options: MagicFusionOptions) -> None:
        self.moment: Moment = "prediction"
        self.options = options

    def __call__(self, steps: Sequence[Step]) -> Sequence[Tensor]:
        """The fused prediction, in each member's kind."""
        if len(steps) == 1:
            return [steps[0].prediction]
        check_same_latents(steps, "magicfusion")
        check_positive(steps, "magicfusion")
        saliencies = torch.stack([self._saliency(step) for step in steps], dim=1)
        chosen = most_salient(saliencies, [self.options.sharpness * step.weight for step in steps])
        guided = torch.stack([as_kind(step.prediction, step, steps[0].kind).float() for step in steps], dim=1)
        # Chosen, not summed: a sum of zeros and one prediction would not be that prediction bit for bit.
        index = chosen.argmax(dim=1)[:, None, None].expand(-1, 1, guided.shape[2], -1, -1)
        return returned(guided.gather(1, index).squeeze(1), steps)

    def _saliency(self, step: Step) -> Tensor:
        prompted, without = (
            to_noise(half, step.sample, step.before, step.kind)
            for half in (step.prediction, unprompted(step, "magicfusion"))
        )
        return saliency(prompted, without, 1.0, self.options.kernel)
