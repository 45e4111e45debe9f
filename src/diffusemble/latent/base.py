"""What one model does in one step, and the protocol of everything that combines several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from jaxtyping import Float
from torch import Tensor

from diffusemble.parametrisation.kinds import Prediction

__all__ = ["Combine", "Level", "Moment", "Prediction", "Step"]

Moment = Literal["prediction", "latents"]


@dataclass(frozen=True)
class Level:
    """How much picture and how much noise latents hold, x = alpha x_0 + sigma ε, in the scheduler's own scale.

    Variance preserving schedulers have alpha² + sigma² = 1, Euler's sigma space alpha = 1, flow matching
    alpha = 1 - sigma.
    """

    alpha: float
    sigma: float

    @property
    def size(self) -> float:
        """√(α² + σ²): deviation of latents whose pictures have deviation 1. 1 where the variance is preserved."""
        return (self.alpha**2 + self.sigma**2) ** 0.5


@dataclass(frozen=True)
class Step:
    """One member's denoising step.

    Attributes:
        index: of the step, from 0.
        timestep: that the denoiser was called with, in the scheduler's unit.
        before: level of ``sample``.
        after: level of ``stepped``.
        sample: latents that the step starts from.
        prediction: guided output of the denoiser, as ``scheduler.step`` takes it.
        kind: what ``prediction`` is.
        weight: of the member.
        length: of its deviation optimisation, as a share of the norm that latents have at their level.
        halves: predictions without and with the prompt, before guidance; None where the pipeline shows only one.
        guidance: scale that joined them; None where it is not known.
        stepped: latents after the scheduler's step; None before it.
        member: place of the member among all that were given, from 0; the base is 0.
        beta: variance β_t = 1 - ᾱ_t / ᾱ_{t-1} of the training step ``timestep``; None where the scheduler has none.
        previous: what the member did one step before (its own ``previous`` left out); None at the first step.
    """

    index: int
    timestep: float
    before: Level
    after: Level
    sample: Float[Tensor, "b ..."]
    prediction: Float[Tensor, "b ..."]
    kind: Prediction
    weight: float
    length: float
    halves: tuple[Tensor, Tensor] | None = None
    guidance: float | None = None
    stepped: Float[Tensor, "b ..."] | None = None
    member: int = 0
    beta: float | None = None
    previous: Step | None = None


class Combine(Protocol):
    """One way to combine members, made anew for every picture, so that it may remember earlier steps.

    It is called once per step with the members whose window the step lies in, so members may leave on the way; with
    one alone it gives back what that one has. The base is the first and never leaves.

    Attributes:
        moment: ``"prediction"``: before the scheduler's step, what is exchanged are predictions, all of one and the
            same latents: members start from the same noise, and their schedulers draw the same noise on the way;
            ``"latents"``: after it, what is exchanged are latents.
    """

    moment: Moment

    def __call__(self, steps: Sequence[Step]) -> Sequence[Tensor]:
        """What each member goes on with, in the order of ``steps``."""
        ...
