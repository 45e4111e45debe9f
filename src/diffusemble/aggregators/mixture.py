"""Mixtures of experts: a learned router chooses who runs (AFA, ICLR 2025, appendix E)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import gumbel_softmax

from diffusemble.aggregators.base import Context, PointChoice, Sizes
from diffusemble.aggregators.router import Router, one_hot
from diffusemble.aggregators.trunk import PRESETS, Trunk, TrunkOptions, pooled


class MixtureOptions(TrunkOptions):
    """The router's network, and how it chooses.

    Attributes:
        temperature: of the Gumbel softmax in training. High ones give smooth gradients that are far from those of a
            choice, low ones gradients of great variance.
        route_guidance: ``"own"``: every sample goes its way. ``"shared"``: both guidance halves of a sample, that is
            equal latents in the first and in the second half of a batch, take the way of their mean logits, so that
            they run as one batch. Do not draw several pictures from one seed without guidance that way: they look
            like halves.
    """

    temperature: Annotated[float, Field(gt=0)] = 1.0
    route_guidance: Literal["own", "shared"] = "own"


class BlockMixtureOptions(MixtureOptions):
    """Options of the block-level mixture.

    Attributes:
        points: before which blocks a choice is made, by index in running order; it holds until the next of them.
    """

    points: Literal["all"] | tuple[int, ...] = "all"


class Mixture(Router):
    """SABW's network, pooled over space to one logit per expert, at each of ``points``.

    In training the gates are a straight-through Gumbel softmax (Jang et al., ICLR 2017): a sample forwards, the soft
    probabilities' gradient backwards. Otherwise they are the most probable expert's.
    """

    presets = PRESETS
    options: MixtureOptions

    def __init__(self, sizes: Sizes, options: MixtureOptions, points: PointChoice) -> None:
        super().__init__(sizes, options, points)
        self.at = nn.ModuleDict(
            {str(point): Trunk(self.channels(point), sizes, options) for point in sorted(self.points)}
        )

    def route(self, point: int, feature: Tensor, context: Context) -> Float[Tensor, "b n"]:
        """Gates from the ``feature [b c h w]`` that enters block ``point``."""
        logits = pooled(self.at[str(point)](feature, context))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.options.route_guidance == "shared" and are_halves(context.sample):
            logits = logits.unflatten(0, (2, -1)).mean(dim=0).repeat(2, 1)
        if self.training and logits.requires_grad:
            return gumbel_softmax(logits, tau=self.options.temperature, hard=True, dim=1)
        return one_hot(logits)


class BlockMixture(Mixture):
    """Before every block the current feature decides who runs it."""

    Options: ClassVar[type[BlockMixtureOptions]] = BlockMixtureOptions

    def __init__(self, sizes: Sizes, options: BlockMixtureOptions) -> None:
        super().__init__(sizes, options, options.points)


class DenoiserMixture(Mixture):
    """The noisy latents, the time and the text decide who runs the whole step."""

    Options: ClassVar[type[MixtureOptions]] = MixtureOptions

    def __init__(self, sizes: Sizes, options: MixtureOptions) -> None:
        super().__init__(sizes, options, (0,))


def are_halves(sample: Float[Tensor, "b c h w"]) -> bool:
    """Whether a batch is one of guidance: the same latents twice, without and with the prompt."""
    half, odd = divmod(len(sample), 2)
    return not odd and torch.equal(sample[:half], sample[half:])
