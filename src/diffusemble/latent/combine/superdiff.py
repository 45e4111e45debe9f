"""SuperDiff between members: the likelier leads (OR), or equally likely under all (AND); arXiv 2412.17762."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from diffusemble.config.schema import Schema
from diffusemble.latent.base import Moment, Step
from diffusemble.latent.combine.members import as_kind, check_positive, check_same_latents, returned
from diffusemble.latent.predictions import to_noise
from diffusemble.latent.superdiff import both, either, kept, log_density_change


class SuperDiff:
    """ε = Σ_m κ_m ε_m, all guided, with κ from how likely the latents are under each member so far.

    Densities are those of predictions with the prompt, before guidance, where members show them. A member's weight is
    its share of the mixture (OR), or how many times as likely as another's its density shall be (AND). Counting starts
    with the first step, and anew when a member joins.

    Raises:
        ValueError: members of different latents, or a weight that is not positive.
    """

    Options: ClassVar[type[Schema]] = Schema

    def __init__(self, options: Schema) -> None:
        self.moment: Moment = "prediction"
        self.last: dict[int, tuple[Tensor, Step]] = {}
        self.log_densities: dict[int, Tensor] = {}

    def weigh(self, log_densities: Tensor, noise: Tensor, fields: Tensor, base: Step) -> Tensor:
        """κ ``[n b]`` from log densities ``[n b]``, noise and guided noise ``[n b d]``."""
        raise NotImplementedError

    def __call__(self, steps: Sequence[Step]) -> Sequence[Tensor]:
        """The superposed prediction, in each member's kind."""
        if len(steps) == 1:
            return [steps[0].prediction]
        check_same_latents(steps, "superdiff")
        check_positive(steps, "superdiff")
        base = steps[0]
        noise = torch.stack([_noise(step.halves[1] if step.halves else step.prediction, step) for step in steps])
        fields = torch.stack([_noise(step.prediction, step) for step in steps])
        kappa = self.weigh(self._count(steps, noise), noise, fields, base)
        guided = torch.stack([as_kind(step.prediction, step, base.kind).float() for step in steps])
        # κ sums to one and kinds are affine in each other: a sum of velocities is the velocity of the sum.
        return returned((kappa.view(*kappa.shape, *[1] * (guided.ndim - 2)) * guided).sum(dim=0), steps)

    def _count(self, steps: Sequence[Step], noise: Tensor) -> Tensor:
        """log q ``[n b]`` so far, with the members' weights; what the last step did is known only now."""
        members = [step.member for step in steps]
        if not set(members) <= set(self.last):
            self.log_densities = {member: noise.new_zeros(noise.shape[1]) for member in members}
        else:
            end = steps[0].sample.float().flatten(1)
            for member, step in zip(members, steps, strict=True):
                told, earlier = self.last[member]
                change = log_density_change(told[None], _flat(earlier.sample), end, earlier.before, step.before)
                self.log_densities[member] = self.log_densities[member] + change[0]
        self.last = dict(zip(members, zip(noise, steps, strict=True), strict=True))
        return torch.stack([self.log_densities[step.member] + self._prior(step) for step in steps])

    def _prior(self, step: Step) -> float:
        return log(step.weight)


class EitherOptions(Schema):
    """How decidedly the likelier member leads.

    Attributes:
        temperature: T of κ = softmax(T log q); 1 is the mixture of the densities, 0 weighs all equally.
    """

    temperature: Annotated[float, Field(ge=0)] = 1.0


class Either(SuperDiff):
    """OR: κ = softmax(T log q), the score of the mixture."""

    Options: ClassVar[type[Schema]] = EitherOptions

    def __init__(self, options: EitherOptions) -> None:
        super().__init__(options)
        self.temperature = options.temperature

    def weigh(self, log_densities: Tensor, noise: Tensor, fields: Tensor, base: Step) -> Tensor:
        """See ``latent.superdiff.either``."""
        return either(log_densities, self.temperature)


class Both(SuperDiff):
    """AND: κ that makes all densities equal."""

    def _prior(self, step: Step) -> float:
        return -super()._prior(step)

    def weigh(self, log_densities: Tensor, noise: Tensor, fields: Tensor, base: Step) -> Tensor:
        """See ``latent.superdiff.both``."""
        return both(log_densities, noise, fields, kept(base.before, base.after))


def _flat(latents: Tensor) -> Tensor:
    return latents.float().flatten(1)


def _noise(prediction: Tensor, step: Step) -> Tensor:
    return _flat(to_noise(prediction.float(), step.sample.float(), step.before, step.kind))
