"""What members must have in common before they draw: a latent space and a noise schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusemble.experts.expert import latent_space
from diffusemble.latent.base import Moment
from diffusemble.latent.member import Member
from diffusemble.latent.schedules import check_scheduler, schedule_difference

# The trial of a scheduler takes as long as some steps of a small model, so one configuration is tried once.
_PASSED: set[tuple[type, str, Moment]] = set()


def check_members(members: Sequence[Member], moment: Moment) -> None:
    """Make sure, before anything is computed, that latents of one member mean the same to another.

    Raises:
        ValueError: names the members, the property and both values.
    """
    base = members[0]
    for member in members if len(members) > 1 else ():
        scheduler = _fresh(member)
        _check_scheduler(member.name, scheduler, moment)
        difference = schedule_difference(_fresh(base), scheduler)
        if difference:
            raise ValueError(
                f"Members need one noise schedule; for the base {base.name!r} and member {member.name!r}, "
                f"{difference}. Use models of one family, with schedulers of one kind."
            )
        _check_space(base, member)


def _check_scheduler(name: str, scheduler: Any, moment: Moment) -> None:
    tried = (type(scheduler), repr(scheduler.config), moment)
    if tried in _PASSED:
        return
    try:
        check_scheduler(scheduler, moment)
    except ValueError as error:
        raise ValueError(f"Member {name!r} cannot take part: {error}") from error
    _PASSED.add(tried)


def _fresh(member: Member) -> Any:
    """Its scheduler as before any use; one that drew before holds the steps of that picture."""
    scheduler = member.pipeline.scheduler
    return type(scheduler).from_config(scheduler.config)


def _check_space(base: Member, member: Member) -> None:
    mine, other = (getattr(one.pipeline, "vae", None) for one in (base, member))
    if mine is None or other is None:
        return
    wanted, got = latent_space(mine), latent_space(other)
    for what in wanted:
        if wanted[what] != got[what]:
            raise ValueError(
                f"Members need one latent space; the VAE of member {member.name!r} has {what} {got[what]!r}, that of "
                f"the base {base.name!r} {wanted[what]!r}. Use models that share a VAE's latent space (SD 1.5 with "
                f"SD 1.5, SDXL with SDXL, ...)."
            )
