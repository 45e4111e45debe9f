"""AMDM as a way to combine members: spherical aggregation, then deviation optimisation (arXiv 2410.01262)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import model_validator
from torch import Tensor

from diffusemble.config.schema import Schema
from diffusemble.latent.amdm import Mix, ddim_mean, ddpm_mean, draw_to, mix, reference_draw_to, reference_mean
from diffusemble.latent.base import Moment, Step
from diffusemble.latent.combine.members import stepped
from diffusemble.latent.predictions import to_clean, to_noise

Mean = Literal["ddim", "ddpm", "reference"]


class AMDMOptions(Schema):
    """How latents are mixed and drawn back.

    Attributes:
        mix: ``"slerp"``, ``"renormalised"``, ``"unit"`` or ``"linear"``, see ``latent.amdm.mix``.
        mean: where each model is drawn to: its deterministic step (``"ddim"``), its posterior mean (``"ddpm"``), or
            ``"reference"``: the published code's, which knows no first step, so that nothing is exchanged there.
        deviation: whether each model is drawn back at all; without, all go on with the same latents.
        shell: whether latents that were drawn back get a norm between those of both ends of the step, instead of the
            shorter one of a straight step.
        compat: ``"reference"`` for the published code with its faults: weights as they are given, their linear sum,
            its mean, one norm for the whole batch, steps past the mean, NaN at the mean.

    Raises:
        ValueError: another option beside ``compat``.
    """

    mix: Mix = "slerp"
    mean: Mean = "ddim"
    deviation: bool = True
    shell: bool = True
    compat: Literal["reference"] | None = None

    @model_validator(mode="after")
    def _one_or_the_other(self) -> AMDMOptions:
        others = [name for name in ("mix", "mean", "deviation", "shell") if name in self.model_fields_set]
        if self.compat is not None and others:
            raise ValueError(
                f"compat='reference' is the published code as it is, so nothing else can be chosen; got "
                f"{', '.join(others)} beside it. Leave out one or the other."
            )
        return self


class AMDM:
    """z = aggregation of all members' latents; each goes on with z, drawn towards its own mean by its own length."""

    Options: ClassVar[type[Schema]] = AMDMOptions

    def __init__(self, options: AMDMOptions) -> None:
        self.moment: Moment = "latents"
        self.options = options

    def __call__(self, steps: Sequence[Step]) -> Sequence[Tensor]:
        """Latents that each member goes on with."""
        latents, options = stepped(steps), self.options
        reference = options.compat == "reference"
        if len(steps) == 1 or ((reference or options.mean == "reference") and steps[0].previous is None):
            return latents
        if reference:
            mixed = sum(step.weight * x for step, x in zip(steps[1:], latents[1:], strict=True))
            mixed = steps[0].weight * latents[0] + mixed
            return [reference_draw_to(mixed, mean_of(step, "reference"), step.length) for step in steps]
        mixed = mix(latents, [step.weight for step in steps], options.mix)
        if not options.deviation:
            return [mixed for _ in steps]
        return [
            # In Euler's space latents are larger, and so is what a share of their norm means.
            draw_to(mixed, mean_of(step, options.mean), step.length * step.after.size, options.shell)
            for step in steps
        ]


def mean_of(step: Step, how: Mean) -> Tensor:
    """μ: where the member's own prediction leads.

    Raises:
        ValueError: the published mean is asked for, and the scheduler has no training steps.
    """
    if how == "reference":
        return _reference_mean(step)
    clean = to_clean(step.prediction, step.sample, step.before, step.kind)
    if how == "ddpm":
        return ddpm_mean(step.sample, clean, step.before, step.after)
    return ddim_mean(clean, to_noise(step.prediction, step.sample, step.before, step.kind), step.after)


def _reference_mean(step: Step) -> Tensor:
    earlier = step.previous
    if earlier is None or earlier.beta is None:
        raise ValueError(
            f"The published mean is that of one training step, and the scheduler of member {step.member} has none: it "
            f"carries no alphas of training. Use a DDIM scheduler, as published, or mean='ddim'."
        )
    noise = to_noise(earlier.prediction, earlier.sample, earlier.before, earlier.kind)
    return reference_mean(step.sample, noise, earlier.before, earlier.beta)
