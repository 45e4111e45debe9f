"""Several models, differently controlled, draw one picture: any pipelines, in step, by one way to combine them."""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffusemble.latent.agreement import check_members
from diffusemble.latent.base import Combine
from diffusemble.latent.combine import build_combine
from diffusemble.latent.lockstep import run_in_step
from diffusemble.latent.member import Member, with_defaults

__all__ = ["Aggregated", "Member", "aggregate"]


@dataclass(frozen=True)
class Aggregated:
    """One picture of several members, or one per seed.

    Attributes:
        images: the base's, in the form its pipeline returned them.
        latents: the base's ``[b ...]``, after the last step.
        outputs: whatever the pipelines returned that ran to their end, by members' names; the base's is the first.
        calls: of each member's denoiser: all steps for the base, those up to the end of its window for another.
        seconds: that it took.
    """

    images: Any
    latents: Tensor
    outputs: Mapping[str, Any]
    calls: Mapping[str, int]
    seconds: float


def aggregate(
    members: Sequence[Member],
    combine: str | Combine = "amdm",
    options: Mapping[str, Any] | None = None,
    *,
    steps: int | None = None,
    seed: int | Sequence[int] = 0,
    shared_noise: bool | None = None,
) -> Aggregated:
    """Draw with all members at once; the picture is the first one's, the base's.

    Args:
        members: pipelines of one latent space and noise schedule, each with its own call.
        combine: a row of ``registry.COMBINES`` such as ``"amdm"`` or ``"linear"``, or an object of one's own.
        options: of that row.
        steps: number of denoising steps, for calls without ``num_inference_steps``.
        seed: of the noise, for calls without ``generator``; a sequence has one for every picture of a batch, which then
            does not depend on the others.
        shared_noise: whether all members begin with the same noise. By default each has its own where latents are
            exchanged (the published way: independent latents keep their norm when they are mixed), and all have the
            same where predictions are joined.

    Raises:
        ValueError: the members do not fit together; the message names them and the difference.
        RuntimeError: a member failed; the message names it, and the pipelines are as they were.
    """
    began = time.perf_counter()
    way = build_combine(combine, **(options or {})) if isinstance(combine, str) else combine
    completed = with_defaults(members, way.moment)
    check_members(completed, way.moment)
    shared = way.moment == "prediction" if shared_noise is None else shared_noise
    ready = []
    for number, member in enumerate(completed):
        own = member.name if number > 0 and not shared else None
        ready.append(replace(member, call=_call(member, steps, _generators(seed, own))))
    run = run_in_step(ready, way)
    output = run.outputs[completed[0].name]
    return Aggregated(output[0], run.latents, run.outputs, run.calls, time.perf_counter() - began)


def _call(member: Member, steps: int | None, generators: Any) -> dict[str, Any]:
    """The member's call, with number of steps and generators where it leaves them open and its pipeline takes them."""
    given = {"num_inference_steps": steps, "generator": generators}
    taken = inspect.signature(type(member.pipeline).__call__).parameters
    more = {name: value for name, value in given.items() if value is not None and name in taken}
    return {**more, **member.call}


def _generators(seed: int | Sequence[int], own: str | None) -> torch.Generator | list[torch.Generator]:
    """Generators for ``seed``; for a member with noise of its ``own``, seeded by its name, whatever its place."""
    if not isinstance(seed, int):
        return [_generator(one, own) for one in seed]
    return _generator(seed, own)


def _generator(seed: int, own: str | None) -> torch.Generator:
    if own is not None:
        digest = hashlib.sha256(f"{seed} {own}".encode()).digest()
        seed = int.from_bytes(digest[:7], "big")
    return torch.Generator().manual_seed(seed)
