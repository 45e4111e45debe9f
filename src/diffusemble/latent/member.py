"""A member of an aggregation: a ready pipeline, what it is called with, and how much it has to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from diffusemble.latent.base import Moment

Window = float | tuple[int, int]

# Where a member does not say otherwise. Sources: the reference's own scripts, 512 x 512, where 45 and 55 of a latent
# norm of 128 are a share of 0.35 and 0.43.
BASE_WEIGHT = 0.5
BASE_LENGTH = 0.43
LENGTH = 0.35
WINDOW = 0.2


@dataclass(frozen=True, eq=False)
class Member:
    """One model that takes part.

    Attributes:
        name: short and unique; messages and results use it.
        pipeline: a diffusers pipeline, or anything that calls ``self.scheduler.step`` once per step.
        call: what the pipeline is called with: prompt, guidance, pictures, boxes, ...
        weight: of its latents; what counts is the ratio to the others. By default 0.5 for the base, and the auxiliary
            members share the rest of the unit sphere alike; 1 for all where predictions are joined.
        length: of its deviation optimisation, as a share of the root of the number of latent values.
        window: steps in which it takes part: the first and the last one, counted from 0, or a share of all steps, from
            the first on. Afterwards an auxiliary member stops. The base has no window: it draws the picture.
        finish: run an auxiliary member on alone after its window, for a picture of its own.
    """

    name: str
    pipeline: Any
    call: Mapping[str, Any] = field(default_factory=dict)
    weight: float | None = None
    length: float | None = None
    window: Window | None = None
    finish: bool = False

    def __post_init__(self) -> None:
        window = self.window
        if isinstance(window, tuple):
            if not 0 <= window[0] <= window[1]:
                raise ValueError(
                    f"A window is the first and the last step, counted from 0; member {self.name!r} has {window}. Give "
                    f"for example (0, 9) for the first ten steps, or 0.2 for the first fifth."
                )
        elif window is not None and not 0 <= window <= 1:
            raise ValueError(
                f"A window in one number is a share of the steps, from 0 to 1; member {self.name!r} has {window}. Give "
                f"for example 0.2, or the first and the last step as (0, {max(int(window) - 1, 0)})."
            )

    def steps(self, count: int) -> range:
        """Steps of its window in a schedule of ``count`` steps.

        Raises:
            ValueError: the window begins after the last step.
        """
        if not isinstance(self.window, tuple):
            return range(round(count * (1 if self.window is None else self.window)))
        first, last = self.window
        if first >= count:
            raise ValueError(
                f"The window of member {self.name!r} begins with step {first}, but the last of {count} steps is "
                f"{count - 1} (they count from 0). Let it begin earlier, or draw with more steps."
            )
        return range(first, min(last + 1, count))


def with_defaults(members: Sequence[Member], moment: Moment) -> tuple[Member, ...]:
    """Members whose weight, length and window are numbers; the base, which is the first, keeps the window None.

    Raises:
        ValueError: there is none, two share a name, or the base has a window.
    """
    if not members:
        raise ValueError(
            "An aggregation needs at least one member, the base; got none. Give Member(name, pipeline, ...)."
        )
    names = [member.name for member in members]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Two members are called {name!r}. Give every member its own name.")
    base, *others = members
    if base.window is not None:
        raise ValueError(
            f"The first member is the base and draws the whole picture, so it has no window; {base.name!r} has "
            f"{base.window}. Leave it out, or put the member first whose picture is to be kept."
        )
    base_weight, weight = (BASE_WEIGHT, ((1 - BASE_WEIGHT**2) / max(len(others), 1)) ** 0.5)
    if moment == "prediction":
        base_weight = weight = 1.0
    return (
        replace(base, weight=_or(base.weight, base_weight), length=_or(base.length, BASE_LENGTH)),
        *(
            replace(
                member,
                weight=_or(member.weight, weight),
                length=_or(member.length, LENGTH),
                window=WINDOW if member.window is None else member.window,
            )
            for member in others
        ),
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
