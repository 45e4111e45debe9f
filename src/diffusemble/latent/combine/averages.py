"""The plainest ways: an average of the latents, one region for each, and no exchange at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import AfterValidator, BeforeValidator, ConfigDict
from torch import Tensor
from torch.nn.functional import interpolate

from diffusemble.config.schema import Schema
from diffusemble.fusion import shares
from diffusemble.latent.base import Moment, Step
from diffusemble.latent.combine.members import check_positive, stepped


class Alone:
    """Nothing is exchanged: every member draws its own picture, for comparison."""

    Options: ClassVar[type[Schema]] = Schema

    def __init__(self, options: Schema) -> None:
        self.moment: Moment = "latents"

    def __call__(self, steps: Sequence[Step]) -> Sequence[Tensor]:
        """Each member's own latents."""
        return stepped(steps)


class Linear:
    """z = Σ w_m x_m / Σ w_m for all. Latents that are not alike lose norm, so pictures grow grey and smooth."""

    Options: ClassVar[type[Schema]] = Schema

    def __init__(self, options: Schema) -> None:
        self.moment: Moment = "latents"

    def __call__(self, steps: Sequence[Step]) -> Sequence[Tensor]:
        """The same latents for every member."""
        latents = stepped(steps)
        if len(latents) == 1:
            return latents
        parts = zip(shares([step.weight for step in steps], len(steps)), latents, strict=True)
        total = torch.stack([share * x.float() for share, x in parts]).sum(dim=0)
        return [total.to(x.dtype) for x in latents]


def _tensor(value: Any) -> Any:
    try:
        return torch.as_tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"A mask is a table of numbers [h w]; got {value!r:.80}. Give rows of equal length."
        ) from error


def _is_mask(mask: Tensor) -> Tensor:
    if mask.ndim != 2 or not mask.numel() or mask.min() < 0:
        raise ValueError(
            f"A mask is a table [h w] of numbers from 0 up; got shape {list(mask.shape)}"
            + (f" and a least value of {float(mask.min()):g}" if mask.numel() else "")
            + ". Give 1 where the member draws and 0 elsewhere."
        )
    return mask


Mask = Annotated[Tensor, BeforeValidator(_tensor), AfterValidator(_is_mask)]


class MasksOptions(Schema):
    """Who draws where.

    Attributes:
        masks: one ``[h w]`` per member, base first, of any size (tensors, arrays or rows of numbers); each is brought
            to the size of the latents by averaging over areas.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    masks: tuple[Mask, ...]


class Masks:
    """z = Σ M_m w_m x_m / Σ M_m w_m at every place, for all (MultiDiffusion, arXiv 2302.08113, equation 5).

    A place that no running member's mask covers stays the base's. Where a single mask covers it, it is a copy.

    Raises:
        ValueError: more members than masks, or a weight that is not positive.
    """

    Options: ClassVar[type[Schema]] = MasksOptions

    def __init__(self, options: MasksOptions) -> None:
        self.moment: Moment = "latents"
        self.masks = options.masks

    def __call__(self, steps: Sequence[Step]) -> Sequence[Tensor]:
        """The same latents for every member."""
        latents = stepped(steps)
        if len(latents) == 1:
            return latents
        check_positive(steps, "masks")
        maps = torch.stack([step.weight * self._mask(step, x) for step, x in zip(steps, latents, strict=True)])
        covered = maps.sum(dim=0)
        maps[0] = torch.where(covered > 0, maps[0], 1.0)
        total = maps.sum(dim=0)
        joined = torch.stack([(m / total) * x.float() for m, x in zip(maps, latents, strict=True)]).sum(dim=0)
        return [joined.to(x.dtype) for x in latents]

    def _mask(self, step: Step, latents: Tensor) -> Tensor:
        if step.member >= len(self.masks):
            raise ValueError(
                f"Every member needs a mask; there are {len(self.masks)}, and none for member {step.member}. Give one "
                f"per member, base first."
            )
        mask = self.masks[step.member].to(latents.device)[None, None]
        return interpolate(mask, size=tuple(latents.shape[-2:]), mode="area")[0, 0]
