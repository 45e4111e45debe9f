"""MagicFusion: at every position the expert draws whose guided noise is most salient there (arXiv 2303.13126)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from diffusemble.aggregators.base import Aggregator, AggregatorOptions, Context, Sizes
from diffusemble.fusion import Kernel, most_salient, saliency

Number = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class MagicFusionOptions(AggregatorOptions):
    """How saliency is measured, and when it decides. Experts are numbered from 0.

    Attributes:
        points: only predictions are fused.
        guidance: guidance scale w of the saliency; the one that the pipeline is called with.
        temperatures: one k per expert; 1 by default. The larger, the more sharply an expert claims its best places.
        kernel: ``"reference"``, the published one, or ``"symmetric"`` (``fusion.smooth``).
        unconditional: whose prediction without prompt a saliency is measured from: each expert's ``"own"``, or that of
            one expert for all, as in the two-expert release, which takes the general model's.
        above, below: saliency decides only at timesteps above and below these, in the sampler's unit.
        otherwise: who draws at the other timesteps: the ``"mean"`` of all, or one expert.

    Raises:
        ValueError: a guidance scale that is none, or thresholds with no timestep between them.
    """

    points: Literal["last"] = "last"
    guidance: float = 7.5
    temperatures: tuple[Positive, ...] | None = None
    kernel: Kernel = "reference"
    unconditional: Literal["own"] | Number = "own"
    above: float | None = None
    below: float | None = None
    otherwise: Literal["mean"] | Number = "mean"

    @field_validator("guidance")
    @classmethod
    def _guides(cls, guidance: float) -> float:
        if guidance <= 1:
            raise ValueError(
                f"MagicFusion compares what guidance adds to each expert's noise, so it needs a guidance scale above "
                f"1; got {guidance:g}. Raise the guidance, or choose an aggregator that works without, such as mean."
            )
        return guidance

    @model_validator(mode="after")
    def _some_time(self) -> MagicFusionOptions:
        if self.above is not None and self.below is not None and self.above >= self.below:
            raise ValueError(
                f"MagicFusion decides at timesteps above {self.above:g} and below {self.below:g}: there is none. Leave "
                f"one of them out, or make 'above' the smaller."
            )
        return self


class MagicFusion(Aggregator):
    """One-hot maps, the same for both halves of guidance, at the last point alone.

    A pipeline with guidance denoises the batch [without prompt; with prompt] and then computes u + w (c - u). Where
    both halves are one expert's, that is exactly the expert's guided noise; so pipelines stay as they are.

    Raises:
        ValueError: an option speaks of experts that are not there, or a batch does not hold the halves of guidance.
    """

    Options: ClassVar[type[AggregatorOptions]] = MagicFusionOptions
    options: MagicFusionOptions

    def __init__(self, sizes: Sizes, options: MagicFusionOptions) -> None:
        super().__init__(sizes, options)
        given = options.temperatures
        if given is not None and len(given) != sizes.experts:
            raise ValueError(
                f"MagicFusion takes one temperature per expert; got {list(given)} for {sizes.experts} experts. Give "
                f"{sizes.experts}, in the order of the experts."
            )
        for option in ("unconditional", "otherwise"):
            number = getattr(options, option)
            if isinstance(number, int) and number >= sizes.experts:
                raise ValueError(
                    f"MagicFusion's option {option!r} names expert {number}, but the experts are 0 to "
                    f"{sizes.experts - 1}. Choose one of them."
                )

    def weigh(self, point: int, features: Sequence[Tensor], context: Context) -> Float[Tensor, "b n h w"]:
        """The most salient expert of every position; outside the thresholds, whoever draws ``otherwise``."""
        check_guided(context.sample)
        options, n = self.options, len(features)
        without, prompted = zip(*(feature.chunk(2) for feature in features), strict=True)
        origins = without if options.unconditional == "own" else [without[options.unconditional]] * n
        saliencies = [saliency(c, u, options.guidance, options.kernel) for c, u in zip(prompted, origins, strict=True)]
        chosen = most_salient(torch.stack(saliencies, dim=1), options.temperatures or [1.0] * n)
        maps = torch.cat([chosen, chosen]).to(features[0].dtype)
        return torch.where(self._decides(context.timestep)[:, None, None, None], maps, self._otherwise(maps))

    def _decides(self, timestep: Tensor) -> Bool[Tensor, " b"]:
        decides = torch.ones_like(timestep, dtype=torch.bool)
        if self.options.above is not None:
            decides &= timestep > self.options.above
        if self.options.below is not None:
            decides &= timestep < self.options.below
        return decides

    def _otherwise(self, maps: Tensor) -> Tensor:
        if self.options.otherwise == "mean":
            return torch.full_like(maps, 1 / maps.shape[1])
        one = torch.zeros_like(maps)
        one[:, self.options.otherwise] = 1
        return one


def check_guided(sample: Float[Tensor, "b c h w"]) -> None:
    """Make sure a batch is [without prompt; with prompt]: guidance denoises the same latents twice.

    Raises:
        ValueError: the batch does not consist of two equal halves.
    """
    half, odd = divmod(len(sample), 2)
    if odd or not torch.equal(sample[:half], sample[half:]):
        raise ValueError(
            f"MagicFusion compares what guidance adds to each expert's noise, so a batch must be the same latents "
            f"twice, without and with the prompt; got {len(sample)} latents that are not two equal halves. Draw with a "
            f"guidance scale above 1 in a pipeline that denoises both halves in one call, or choose an aggregator that "
            f"works without, such as mean."
        )
