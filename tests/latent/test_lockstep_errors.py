"""Errors: a member that fails stops all and is named; members that do not fit are refused with the difference."""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from diffusemble import Member, aggregate
from diffusemble.latent.base import Step
from diffusemble.latent.combine import build_combine
from diffusemble.latent.lockstep import run_in_step
from diffusemble.latent.predict import PredictPipeline
from stock import generator, gligen, perturbed_attention, plain, small_pipeline
from tiny import tiny_scheduler, tiny_vae

CALL = {"shape": (1, 4, 8, 8), "num_inference_steps": 4}


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert {thread for thread in set(threading.enumerate()) - before if type(thread) is threading.Thread} == set()


class Failing:
    """Predicts nothing, until call ``at``."""

    def __init__(self, error: BaseException | None = None, at: int = 1) -> None:
        self.error, self.at, self.calls = error, at, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        if self.error is not None and self.calls > self.at:
            raise self.error
        return torch.zeros_like(x)


def toy(name: str, predict: Any = None, scheduler: Any = None, **more: Any) -> Member:
    pipeline = PredictPipeline(predict or Failing(), scheduler or tiny_scheduler())
    return Member(name, pipeline, {**CALL, **more.pop("call", {})}, **more)


@pytest.mark.parametrize("which", ["base", "aux"])
@pytest.mark.parametrize(
    ("error", "kind"),
    [(ValueError("odd"), ValueError), (TypeError("odd"), ValueError), (KeyError("odd"), RuntimeError)],
)
def test_a_failing_member_stops_all_and_is_named(which: str, error: Exception, kind: type[Exception]) -> None:
    predicts = {name: Failing(error if name == which else None) for name in ("base", "aux", "other")}
    members = [toy(name, predict, window=None if name == "base" else 1.0) for name, predict in predicts.items()]
    with pytest.raises(kind, match=rf"^Member '{which}' failed: {type(error).__name__}: .*odd") as caught:
        aggregate(members)
    assert caught.value.__cause__ is error
    assert max(predict.calls for predict in predicts.values()) == 2


def test_an_error_while_combining_is_nobodys() -> None:
    class Odd:
        moment = "latents"

        def __call__(self, steps: Sequence[Step]) -> Sequence[Tensor]:
            raise ValueError("cannot be combined")

    with pytest.raises(ValueError, match=r"^cannot be combined$"):
        aggregate([toy("a"), toy("b", window=1.0)], Odd())


@pytest.mark.parametrize("which", ["base", "aux"])
def test_an_interrupt_is_passed_on_as_it_is(which: str) -> None:
    predicts = {name: Failing(KeyboardInterrupt() if name == which else None) for name in ("base", "aux")}
    with pytest.raises(KeyboardInterrupt):
        aggregate([toy(name, predict, window=None if name == "base" else 1.0) for name, predict in predicts.items()])
    assert max(predict.calls for predict in predicts.values()) == 2


def test_ctrl_c_while_an_auxiliary_member_computes_stops_all() -> None:
    interrupted, calls = threading.Event(), []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        _thread.interrupt_main()  # what ctrl-C does, while the main thread waits for this one
        interrupted.wait(timeout=0.2)
        return torch.zeros_like(x)

    base = Failing()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            aggregate([toy("base", base), toy("aux", predict, window=1.0)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert (base.calls, len(calls)) == (1, 1)


def test_pipelines_are_as_they_were_after_an_error() -> None:
    (pag, one), (boxes, two) = perturbed_attention(), gligen()
    expected = [pipeline(**call, generator=generator()).images for pipeline, call in ((pag, one), (boxes, two))]
    schedulers, processors = (pag.scheduler, boxes.scheduler), pag.unet.attn_processors

    def fail(pipeline: Any, step: int, *rest: Any) -> Any:
        raise RuntimeError("no more")

    members = [Member("gligen", boxes, two), Member("pag", pag, {**one, "callback_on_step_end": fail}, window=1.0)]
    with pytest.raises(RuntimeError, match=r"Member 'pag' failed: RuntimeError: no more"):
        aggregate(members)
    assert (pag.scheduler, boxes.scheduler) == schedulers
    assert all(processors[name] is now for name, now in pag.unet.attn_processors.items())
    assert not pag.unet._forward_hooks
    assert not boxes.unet._forward_hooks
    for (pipeline, call), before in zip(((pag, one), (boxes, two)), expected, strict=True):
        assert (pipeline(**call, generator=generator()).images == before).all()


def test_an_interrupted_base_ends_early_and_the_others_with_it() -> None:
    pipeline, call = plain()

    def interrupt(pipeline: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipeline._interrupt = True  # how diffusers stops a drawing
        return given

    base = Member("a", pipeline, {**call, "callback_on_step_end": interrupt})
    drawn = aggregate([base, Member("b", pipeline, call, window=1.0), Member("c", pipeline, call, finish=True)])
    assert drawn.calls == {"a": 1, "b": 1, "c": 3}
    assert list(drawn.outputs) == ["a", "c"]


MISMATCHES = {
    "steps": (
        lambda: toy("b", call={"num_inference_steps": 6}),
        r"need the same timesteps; the base 'a' has 4 \(751, 501, 251, ...\), member 'b' has 6 .* num_inference_steps",
    ),
    "shape": (
        lambda: toy("b", call={"shape": (1, 4, 8, 4)}),
        r"one shape; the base 'a' has \[1, 4, 8, 8\], member 'b' \[1, 4, 8, 4\].*height, width and number of pictures",
    ),
    "device": (
        lambda: toy("b", call={"shape": None, "latents": torch.zeros(1, 4, 8, 8, device="meta")}),
        "those of the base 'a' are on cpu, those of member 'b' on meta",
    ),
    "batch": (lambda: toy("b", call={"shape": (2, 4, 8, 8)}), r"member 'b' \[2, 4, 8, 8\]"),
    "spacing": (
        lambda: toy("b", scheduler=tiny_scheduler(timestep_spacing="trailing")),
        r"member 'b' has 4 \(999, 749, 499, ...\)",
    ),
    "betas": (
        lambda: toy("b", scheduler=tiny_scheduler(beta_end=0.02)),
        "base 'a' and member 'b', alphas_cumprod differs",
    ),
    "family": (lambda: toy("b", scheduler=FlowMatchEulerDiscreteScheduler()), "latents of DDIMScheduler are"),
    "sigma space": (
        lambda: toy("b", scheduler=EulerDiscreteScheduler.from_config(tiny_scheduler().config)),
        "those of EulerDiscreteScheduler are picture . sigma noise",
    ),
    "kept latents": (
        lambda: toy("b", scheduler=UniPCMultistepScheduler.from_config(tiny_scheduler().config)),
        "Member 'b' cannot take part: UniPCMultistepScheduler starts .* steps from latents that it kept itself",
    ),
}


@pytest.mark.parametrize("what", MISMATCHES)
def test_members_that_do_not_fit_are_refused_before_the_second_step(what: str) -> None:
    make, message = MISMATCHES[what]
    base, member = Failing(), make()
    with pytest.raises(ValueError, match=message):
        aggregate([toy("a", base), member])
    assert base.calls <= 1


@pytest.mark.parametrize(
    ("config", "what"), [({"scaling_factor": 0.13}, "scaling_factor"), ({"latent_channels": 8}, "latent_channels")]
)
def test_vaes_of_other_latent_spaces_are_refused(config: dict[str, Any], what: str) -> None:
    pipeline, call = plain()
    other = small_pipeline(1, vae=tiny_vae(**config))
    with pytest.raises(ValueError, match=rf"one latent space; the VAE of member 'b' has {what} .*the base 'a'"):
        aggregate([Member("a", pipeline, call), Member("b", other, call)])


def test_a_pipeline_that_never_steps_is_no_member() -> None:
    class Idle(PredictPipeline):
        def __call__(self, **call: Any) -> Any:
            return None

    idle = Idle(Failing(), tiny_scheduler())
    with pytest.raises(ValueError, match=r"Member 'a' failed: .*Idle ended without it"):
        aggregate([Member("a", idle)])
    with pytest.raises(ValueError, match=r"Member 'b' failed: .*Idle ended without it"):
        aggregate([toy("a"), Member("b", idle)])


def test_a_member_that_ends_before_its_window_is_refused() -> None:
    class Short(PredictPipeline):
        def __call__(self, **call: Any) -> Any:
            self.scheduler.set_timesteps(4)
            x = torch.zeros(CALL["shape"])
            return self.scheduler.step(x, self.scheduler.timesteps[0], x)

    short = Member("b", Short(Failing(), tiny_scheduler()), window=1.0)
    with pytest.raises(ValueError, match=r"member 'b' ended its call after 1 steps.*as many steps as the base 'a'"):
        aggregate([toy("a"), short])


def test_a_denoiser_that_predicts_more_than_noise_is_refused() -> None:
    def predict(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([x, x], dim=1)

    with pytest.raises(ValueError, match=r"shape of the latents \[1, 4, 8, 8\]; this denoiser predicts \[1, 8, 8, 8\]"):
        aggregate([toy("a", predict)])


def test_a_scheduler_with_another_step_is_refused() -> None:
    class Other:
        timesteps = torch.arange(3)

        def step(self, prediction: Tensor) -> None: ...

    class Own:
        scheduler = Other()

        def __call__(self) -> None: ...

    with pytest.raises(ValueError, match="Other takes no 'model_output'"):
        run_in_step([Member("a", Own())], build_combine("none"))
