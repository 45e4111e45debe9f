"""Unmodified pipelines in step: every member runs its own call, and all meet at the scheduler's step.

The base runs in the caller's thread, each auxiliary member as a strand that the base resumes at every step, so exactly
one computes at a time. After its window an auxiliary member is stopped and costs nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffusemble.latent.base import Combine, Step
from diffusemble.latent.meeting import check_steps, check_timesteps
from diffusemble.latent.member import Member
from diffusemble.latent.runner import Runner
from diffusemble.latent.strand import Ended, Strand


@dataclass(frozen=True)
class Run:
    """What came of it; mappings go by members' names.

    Attributes:
        outputs: what the pipelines returned that ran to their end; the base's is the first.
        latents: of the base after its last step.
        calls: of the denoisers (the pipelines' ``unet`` or ``transformer``); steps where there is none.
    """

    outputs: Mapping[str, Any]
    latents: Tensor
    calls: Mapping[str, int]


def run_in_step(members: Sequence[Member], combine: Combine) -> Run:
    """Run the members' pipelines in step.

    Args:
        members: the base first; with numbers for weights and lengths (``with_defaults``).
        combine: made for this picture.

    Raises:
        ValueError: members do not take the same steps with latents of the same shape, or a member raised ValueError.
        RuntimeError: a member raised something else. Both name the member, and all pipelines are as they were.
    """
    return _Lockstep(members, combine).run()


class _Lockstep:
    def __init__(self, members: Sequence[Member], combine: Combine) -> None:
        self.combine = combine
        self.runners = [Runner(number, member, combine.moment) for number, member in enumerate(members)]
        self.base = self.runners[0]
        self.original = [runner.arrangement.read() for runner in self.runners]
        self.arranged = list(self.original)
        self.windows: dict[int, range] = {}
        self.strands: dict[int, Strand] = {}
        self.replies: dict[int, Tensor] = {}
        self.raised: BaseException | None = None

    # -- the story -------------------------------------------------------------------------------------------------

    def run(self) -> Run:
        outputs: dict[str, Any] = {}
        try:
            outputs[self.base.name] = self._run_base()
            for number in list(self.strands):
                if self.runners[number].member.finish:
                    outputs[self.runners[number].name] = self._finish(number)
        finally:
            for number in list(self.strands):
                self._stop(number)
            for runner, original in zip(self.runners, self.original, strict=True):
                runner.arrangement.write(original)
        return Run(outputs, self.base.latents, {runner.name: runner.calls for runner in self.runners})

    def _together(self, step: Step) -> Tensor:
        """One step of all: what the base, which brings ``step``, goes on with."""
        if step.index == 0:
            self._begin(self.base.remaining(step.timestep))
        steps = [step, *(self._next_step(number) for number in list(self.strands))]
        self._check(steps)
        taking_part = [each for each in steps if each.member == 0 or each.index in self.windows[each.member]]
        combined = {each.member: _own(each) for each in steps}
        if len(taking_part) > 1:
            members = [each.member for each in taking_part]
            combined.update(zip(members, self.combine(taking_part), strict=True))
        for number in list(self.strands):
            self.replies[number] = combined[number]
            if step.index + 1 == self.windows[number].stop and not self.runners[number].member.finish:
                self._stop(number)
        return combined[0]

    # -- its parts -------------------------------------------------------------------------------------------------

    def _run_base(self) -> Any:
        try:
            return self.base.run(self._meet)
        except Exception as error:
            if error is self.raised:
                raise
            raise _named(self.base.name, error) from error

    def _meet(self, step: Step) -> Tensor:
        try:
            return self._together(step)
        except BaseException as error:
            self.raised = error  # it names its member already
            raise

    def _begin(self, count: int) -> None:
        """Make the strands of the members that have something to do; the base has come to its first step."""
        for runner in self.runners[1:]:
            window = self.windows[runner.number] = runner.member.steps(count)
            if window or runner.member.finish:
                self.strands[runner.number] = Strand(runner.run)

    def _next_step(self, number: int) -> Step:
        report = self._resume(number)
        if isinstance(report, Ended):
            del self.strands[number]
            raise ValueError(
                f"Members draw in step until their windows end; member {self.runners[number].name!r} ended its call "
                f"after {self.runners[number].steps} steps. Give it as many steps as the base {self.base.name!r} takes."
            )
        step: Step = report
        return step

    def _finish(self, number: int) -> Any:
        """Output of an auxiliary member that runs to its end."""
        while not isinstance(report := self._resume(number), Ended):
            self.replies[number] = _own(report)  # the base has left early: a callback interrupted it
        del self.strands[number]
        return report.result

    def _resume(self, number: int) -> Any:
        runner, home = self.runners[number], self.base.arrangement.read()
        runner.arrangement.write(self.arranged[number])
        try:
            return self.strands[number].resume(self.replies.pop(number, None))
        except Exception as error:
            raise _named(runner.name, error) from error
        finally:
            self.arranged[number] = runner.arrangement.read()
            self.base.arrangement.write(home)

    def _stop(self, number: int) -> None:
        self.strands.pop(number).stop()
        self.runners[number].leave()

    def _check(self, steps: Sequence[Step]) -> None:
        for step in steps[1:]:
            if step.index == 0:
                runner = self.runners[step.member]
                check_timesteps((self.base.name, runner.name), (self.base.scheduler, runner.scheduler))
        check_steps({self.runners[step.member].name: step for step in steps})


def _own(step: Step) -> Tensor:
    """What a member goes on with where nothing is exchanged."""
    return step.prediction if step.stepped is None else step.stepped


def _named(name: str, error: Exception) -> Exception:
    kind = ValueError if isinstance(error, (ValueError, TypeError)) else RuntimeError
    return kind(f"Member {name!r} failed: {type(error).__name__}: {error}")
