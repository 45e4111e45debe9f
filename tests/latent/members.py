"""Steps of members that draw the same latents, for tests of the ways to combine them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffusemble.latent.amdm import ddim_mean
from diffusemble.latent.base import Level, Step
from diffusemble.latent.predictions import from_noise, to_clean, to_noise

BEFORE, AFTER = Level(0.6, 0.8), Level(0.8, 0.6)
SHAPE = (2, 4, 7, 5)
GUIDANCE = 3.0


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed))


def step(member: int = 0, seed: int | None = None, **changes: Any) -> Step:
    """One step of a member whose opinions come from ``seed``: guided noise from halves, and its DDIM step."""
    seed = member if seed is None else seed
    without, prompted = noise(100 + seed), noise(200 + seed)
    base = Step(
        index=0,
        timestep=500,
        before=BEFORE,
        after=AFTER,
        sample=noise(1),
        prediction=without + GUIDANCE * (prompted - without),
        kind="epsilon",
        weight=1.0,
        length=0.1,
        halves=(without, prompted),
        guidance=GUIDANCE,
        stepped=noise(300 + seed),
        member=member,
    )
    return replace(base, **changes)


def as_kind(one: Step, kind: Any) -> Step:
    """The same member, had it been trained to predict ``kind``."""

    def told(eps: Tensor) -> Tensor:
        return from_noise(eps, one.sample, one.before, kind)

    halves = None if one.halves is None else (told(one.halves[0]), told(one.halves[1]))
    return replace(one, kind=kind, prediction=told(one.prediction), halves=halves)


def row(one: Step, index: int) -> Step:
    """The member with one sample of its batch alone."""
    cut = slice(index, index + 1)
    changed: dict[str, Any] = {"sample": one.sample[cut], "prediction": one.prediction[cut]}
    if one.halves is not None:
        changed["halves"] = (one.halves[0][cut], one.halves[1][cut])
    if one.stepped is not None:
        changed["stepped"] = one.stepped[cut]
    return replace(one, **changed)


def ddim(one: Step) -> Tensor:
    """Latents after the member's own deterministic step."""
    clean = to_clean(one.prediction, one.sample, one.before, one.kind)
    return ddim_mean(clean, to_noise(one.prediction, one.sample, one.before, one.kind), one.after)
