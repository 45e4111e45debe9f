"""Diffusers' samplers by the names of a configuration, for the noise schedule of the experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusemble.registry import SCHEDULERS, Entry, lookup

SCHEDULER_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "ddim": {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False},
    "pndm": {"steps_offset": 1, "set_alpha_to_one": False, "skip_prk_steps": True},
}
"""What AFA and Stable Diffusion set; everything else is the experts' own schedule."""

FLOW_SAMPLERS: Mapping[str, Entry] = {
    "ddim": Entry("diffusers:FlowMatchEulerDiscreteScheduler", "flow-matching Euler"),
    "euler": Entry("diffusers:FlowMatchEulerDiscreteScheduler", "flow-matching Euler"),
    "lcm": Entry("diffusers:FlowMatchLCMScheduler", "flow-matching LCM"),
    "dpm++": SCHEDULERS["dpm++"],
}
"""The samplers for experts of a flow (FLUX, SD3), where DDIM's step is Euler's."""


_OWN_STEPS = ("Chroma", "QwenImage", "ZImage")
"""How names of the pipelines begin that tell their sampler which steps to take; ``dpm++`` takes its own."""


def use_sampler(pipeline: Any, name: str) -> None:
    """Let a pipeline draw with sampler ``name``, for the noise schedule of the sampler that it has.

    Raises:
        ValueError: unknown name, or a sampler that does not follow flows, or not by this pipeline's steps.
    """
    if type(pipeline).__name__.startswith(_OWN_STEPS):
        lookup(SCHEDULERS, name, "scheduler")
        fitting = [one for one in FLOW_SAMPLERS if one != "dpm++"]
        if name not in fitting:
            raise ValueError(
                f"The sampler {name!r} does not take the steps that {type(pipeline).__name__} gives. Choose one of: "
                f"{', '.join(fitting)}."
            )
    pipeline.scheduler = build_scheduler(name, pipeline.scheduler.config)


def build_scheduler(name: str, trained_with: Mapping[str, Any]) -> Any:
    """Sampler ``name`` of ``registry.SCHEDULERS`` for the noise schedule that the experts were trained with.

    Args:
        name: ``"ddim"``, ``"euler"``, ...
        trained_with: configuration of the experts' own scheduler; that of a flow stays one, with its shift.

    Raises:
        ValueError: unknown name, or a sampler that does not follow flows.
    """
    cls = lookup(SCHEDULERS, name, "scheduler")
    if _flows(trained_with):
        return _flow_sampler(name, trained_with)
    return cls.from_config(trained_with, **SCHEDULER_SETTINGS.get(name, {}))


def title_for(name: str, trained_with: Mapping[str, Any]) -> str:
    """What the sampler is called that ``build_scheduler`` builds."""
    return (FLOW_SAMPLERS if _flows(trained_with) else SCHEDULERS)[name].title


def _flows(trained_with: Mapping[str, Any]) -> bool:
    return "invert_sigmas" in trained_with or bool(trained_with.get("use_flow_sigmas"))


def _flow_sampler(name: str, trained_with: Mapping[str, Any]) -> Any:
    if name not in FLOW_SAMPLERS:
        raise ValueError(
            f"The sampler {name!r} is for experts that predict noise, but these follow a flow (FLUX, SD3). Choose one "
            f"of: {', '.join(FLOW_SAMPLERS)}."
        )
    given, settings = dict(trained_with), {}
    if name == "dpm++":
        shift = given.pop("shift", given.get("flow_shift", 1.0))
        settings = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    return lookup(FLOW_SAMPLERS, name, "scheduler").from_config(given, **settings)
