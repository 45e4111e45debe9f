"""What ways to combine members ask of their steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusemble.latent.base import Prediction, Step
from diffusemble.latent.predictions import from_noise, to_noise


def stepped(steps: Sequence[Step]) -> list[Tensor]:
    """Latents of every member after its scheduler's step.

    Raises:
        ValueError: a member's scheduler has not stepped yet, or latents differ in shape.
    """
    latents = [step.stepped for step in steps]
    for step, one in zip(steps, latents, strict=True):
        if one is None:
            raise ValueError(
                f"Latents are combined after the scheduler's step, and member {step.member} comes without `stepped` at "
                f"step {step.index}. Call this at the moment 'latents'."
            )
    found = [one for one in latents if one is not None]
    shapes = {tuple(one.shape) for one in found}
    if len(shapes) > 1:
        raise ValueError(
            f"Members must draw latents of one shape; got {sorted(shapes)} at step {steps[0].index}. Draw with models "
            f"that share one latent space, at one picture size and number of pictures."
        )
    return found


def check_same_latents(steps: Sequence[Step], way: str) -> None:
    """Make sure that what members predict is about the same latents.

    Raises:
        ValueError: a member's latents are not the base's.
    """
    base = steps[0].sample
    for step in steps[1:]:
        if step.sample.shape != base.shape or not torch.allclose(step.sample, base, rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"{way} joins predictions of one and the same latents, but at step {step.index} those of member "
                f"{step.member} are not those of member {steps[0].member}. Start all members from the same noise, with "
                f"equal schedulers and generators of equal seeds, or combine latents (amdm, linear, masks)."
            )


def check_positive(steps: Sequence[Step], way: str) -> None:
    """Make sure that no member's weight is zero or less.

    Raises:
        ValueError: a weight is.
    """
    for step in steps:
        if step.weight <= 0:
            raise ValueError(
                f"Weights of {way} say who counts how much, so they are positive; member {step.member} has "
                f"{step.weight:g}. Give a positive one, leave the member out, or use composable, where a negative "
                f"weight means NOT."
            )


def unprompted(step: Step, way: str) -> Tensor:
    """The member's prediction without its prompt.

    Raises:
        ValueError: the member shows none.
    """
    if step.halves is None:
        raise ValueError(
            f"{way} needs what a prompt changes, so predictions with and without it, and member {step.member} shows "
            f"only one at step {step.index}. Draw it with a guidance scale above 1, or combine by linear, superdiff-or "
            f"or amdm, which need no halves."
        )
    return step.halves[0]


def as_kind(prediction: Tensor, step: Step, kind: Prediction) -> Tensor:
    """A prediction of the member's own kind, said as ``kind``; as it is where they are one."""
    if step.kind == kind:
        return prediction
    noise = to_noise(prediction, step.sample, step.before, step.kind)
    return from_noise(noise, step.sample, step.before, kind)


def returned(prediction: Tensor, steps: Sequence[Step]) -> list[Tensor]:
    """One prediction of the base's kind as every member's scheduler takes it."""
    base = steps[0]
    if all(step.kind == base.kind for step in steps):
        return [prediction.to(step.prediction.dtype) for step in steps]
    noise = to_noise(prediction, base.sample, base.before, base.kind)
    return [
        (prediction if step.kind == base.kind else from_noise(noise, step.sample, step.before, step.kind)).to(
            step.prediction.dtype
        )
        for step in steps
    ]
