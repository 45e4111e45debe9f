"""Sizes of gated controls, and what all their conditions say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from diffusemble.controls.base import TIMESTEPS

SLOTS = 30  # of the published models
HIDDEN = 512
_ROUNDING = 0.6 / TIMESTEPS  # schedulers round to whole timesteps of training


@dataclass(frozen=True)
class GatedSizes:
    """Sizes of a gated control.

    Attributes:
        blocks: width and number of heads of every transformer block with a gated layer, by the block's name.
        token: width of the tokens.
        text: width of the phrases' embeddings.
        hidden: width inside the projection of conditions to tokens.
        slots: how many things a condition may have.
    """

    blocks: Mapping[str, tuple[int, int]]
    token: int
    text: int
    hidden: int = HIDDEN
    slots: int = SLOTS


@dataclass(frozen=True, eq=False, kw_only=True)
class GatedCondition:
    """What every condition of a gated control says.

    Attributes:
        scale: in front of the gates: 1 as trained, 0 off.
        until: share of the schedule during which the layers are on; GLIGEN calls it scheduled sampling.
    """

    scale: float = 1.0
    until: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.until <= 1:
            raise ValueError(f"until is a share of the schedule, 0 to 1; got {self.until:g}. 1 keeps the control on.")

    def __len__(self) -> int:
        """Number of slots that it takes."""
        return 0


def at_work(progress: float, until: float) -> bool:
    """Whether a control that works for a share of the schedule works at this place in it.

    For leading and trailing timesteps these are the first ``until`` T of T steps that divide the schedule, as in the
    published code.
    """
    return progress < until - _ROUNDING
