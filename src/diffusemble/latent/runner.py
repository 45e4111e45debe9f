"""One member at work: its pipeline runs unmodified, and meets the others where it calls ``scheduler.step``."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from diffusemble.latent.arrangement import Arrangement
from diffusemble.latent.base import Moment, Step
from diffusemble.latent.member import Member
from diffusemble.latent.schedules import levels, prediction_kind, training_beta
from diffusemble.latent.watch import Watch, guidance

Meet = Callable[[Step], Tensor]

_STEP = ("model_output", "timestep", "sample")


class Runner:
    """A member's pipeline in step with others.

    What runs is a shallow copy of the pipeline with a scheduler of its own, so the given pipeline and its scheduler
    stay as they are, and one pipeline may stand for several members. Modules are shared; what a pipeline rearranges in
    its denoiser is put back.

    Args:
        number: place among the members.
        member: with numbers for weight and length.
        moment: whether members meet before or after the scheduler's step.

    Attributes:
        pipeline, scheduler: its own copies.
        arrangement: of its denoiser.
        steps: begun so far.
        latents: as they left the last step, after the exchange.
    """

    latents: Tensor

    def __init__(self, number: int, member: Member, moment: Moment) -> None:
        self.number, self.member, self.name, self._moment = number, member, member.name, moment
        self.pipeline: Any = copy.copy(member.pipeline)
        self.scheduler: Any = copy.deepcopy(member.pipeline.scheduler)
        self.pipeline.scheduler = self.scheduler
        if number > 0 and hasattr(self.pipeline, "set_progress_bar_config"):
            self.pipeline.set_progress_bar_config(disable=True)
        denoiser = _denoiser(self.pipeline)
        self.arrangement, self._watch = Arrangement(denoiser), Watch(denoiser)
        self.steps = 0
        self._before: Step | None = None

    def run(self, meet: Meet) -> Any:
        """Run the pipeline's own call; ``meet`` gets every step and says what the member goes on with.

        Returns:
            What the pipeline returns.
        """
        plain = self.scheduler.step
        signature = inspect.signature(plain)
        missing = [name for name in _STEP if name not in signature.parameters]
        if missing:
            raise ValueError(
                f"Members meet in scheduler.step(model_output, timestep, sample, ...); {type(self.scheduler).__name__} "
                f"takes no {missing[0]!r}. Draw with another scheduler, such as DDIMScheduler."
            )

        @functools.wraps(plain)  # pipelines read the signature to see what a scheduler takes
        def step(*args: Any, **given: Any) -> Any:
            return self._step(plain, signature.bind(*args, **given), meet)

        self.scheduler.step = step
        with self._watch.watching():
            result = self.pipeline(**self.member.call)
        if not self.steps:
            raise ValueError(
                f"A member is a pipeline that calls self.scheduler.step; {type(self.pipeline).__name__} ended without "
                f"it. Give the pipeline that holds the scheduler and the loop."
            )
        return result

    def remaining(self, timestep: float) -> int:
        """Steps from the one at ``timestep`` on, when it is the first."""
        timesteps = [float(each) for each in self.scheduler.timesteps]
        return len(timesteps) - (timesteps.index(timestep) if timestep in timesteps else 0)

    @property
    def calls(self) -> int:
        """Of the denoiser, so far; steps where the pipeline holds no denoiser."""
        return self.steps if self._watch.calls is None else self._watch.calls

    def leave(self) -> None:
        """Do what the pipeline's own call would have done at its end."""
        if hasattr(self.pipeline, "maybe_free_model_hooks"):
            self.pipeline.maybe_free_model_hooks()

    def _step(self, plain: Callable[..., Any], bound: inspect.BoundArguments, meet: Meet) -> Any:
        given = bound.arguments
        self.steps += 1
        now = self._describe(*(given[name] for name in _STEP))
        if self._moment == "prediction":
            given["model_output"] = meet(now).to(now.prediction)
            out = plain(*bound.args, **bound.kwargs)
            self.latents = _latents(out)
        else:
            out = plain(*bound.args, **bound.kwargs)
            now = replace(now, stepped=_latents(out))
            self.latents = meet(now).to(_latents(out))
            out = _with_latents(out, self.latents)
        self._before = replace(now, previous=None)
        return out

    def _describe(self, prediction: Tensor, timestep: Any, sample: Tensor) -> Step:
        if prediction.shape != sample.shape:
            raise ValueError(
                f"A prediction has the shape of the latents {list(sample.shape)}; this denoiser predicts "
                f"{list(prediction.shape)}. Models that predict a variance as well cannot be aggregated."
            )
        member, before = self.member, self._before
        halves, scale = guidance(self._watch.seen(), prediction, self.pipeline, member.call)
        start, end = levels(self.scheduler, timestep)
        return Step(
            index=self.steps - 1,
            timestep=float(timestep),
            before=start,
            after=end,
            sample=sample,
            prediction=prediction,
            kind=prediction_kind(self.scheduler),
            weight=float(member.weight or 0),
            length=float(member.length or 0),
            halves=halves,
            guidance=scale,
            member=self.number,
            beta=training_beta(self.scheduler, timestep),
            previous=before,
        )


def _denoiser(pipeline: Any) -> nn.Module | None:
    for name in ("unet", "transformer"):
        part = getattr(pipeline, name, None)
        if isinstance(part, nn.Module):
            return part
    return None


def _latents(out: Any) -> Tensor:
    latents: Tensor = out[0] if isinstance(out, tuple) else out.prev_sample
    return latents


def _with_latents(out: Any, latents: Tensor) -> Any:
    """``out`` of a scheduler's step, tuple or output object, with other latents."""
    if isinstance(out, tuple):
        return (latents, *out[1:])
    out.prev_sample = latents
    return out
