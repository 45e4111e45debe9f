"""What diffusers' schedulers do to latents, told from their properties: levels, kinds of prediction, and differences.

A scheduler belongs to one of three families, known by what it carries:

- a table ``alphas_cumprod`` and no ``sigmas``: x = √ᾱ x₀ + √(1-ᾱ) ε (DDIM, DDPM, PNDM, LCM);
- a table ``sigmas`` and ``_sigma_to_alpha_sigma_t``: levels are what that says (DPM-Solver++, UniPC, DEIS);
- a table ``sigmas`` alone: α = 1 where there is ``alphas_cumprod`` (Euler, Euler ancestral), α = 1 - σ where noise is
  added by ``scale_noise`` (flow matching).

Whether a scheduler keeps what its family promises is tried out, not looked up by name: ``check_scheduler`` lets a copy
of it draw one known picture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffusemble.latent.base import Level, Moment, Prediction
from diffusemble.latent.trial import STEPS, try_out

TOLERANCE = 0.05
"""Of a level, as a share of it: what schedulers that draw noise are off by chance (0.03 at most) passes."""

KINDS: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "v_prediction": "v_prediction",
    "sample": "sample",
    "original_sample": "sample",
    "flow_prediction": "flow_prediction",
}


def prediction_kind(scheduler: Any) -> Prediction:
    """What the scheduler takes a denoiser's output for.

    Raises:
        ValueError: a kind that has no formula here.
    """
    named = scheduler.config.get("prediction_type", "flow_prediction" if flows(scheduler) else None)
    if named not in KINDS:
        raise ValueError(
            f"Models can be combined if they predict {', '.join(KINDS)}; {type(scheduler).__name__} takes {named!r}. "
            f"Use a scheduler with one of those."
        )
    return KINDS[named]


def flows(scheduler: Any) -> bool:
    """Whether its latents are (1 - σ) x₀ + σ ε: flow matching."""
    return hasattr(scheduler, "scale_noise") or bool(scheduler.config.get("use_flow_sigmas", False))


def levels(scheduler: Any, timestep: float | Tensor) -> tuple[Level, Level]:
    """Levels of the latents before and after the step that ``scheduler`` is about to take at ``timestep``.

    Call it after ``set_timesteps`` and before ``step``: most schedulers count their steps.

    Raises:
        ValueError: the scheduler is of no known family.
    """
    _family(scheduler)
    if hasattr(scheduler, "sigmas"):
        index = _index(scheduler, timestep)
        return _of_sigma(scheduler, scheduler.sigmas[index]), _of_sigma(scheduler, scheduler.sigmas[index + 1])
    return _preserving(scheduler.alphas_cumprod[int(timestep)]), _after(scheduler, int(timestep))


def training_beta(scheduler: Any, timestep: float | Tensor) -> float | None:
    """β_t = 1 - ᾱ_t / ᾱ_{t-1} of the training step nearest to ``timestep``; None where there are no training steps."""
    alphas = getattr(scheduler, "alphas", None)
    return None if alphas is None else 1 - float(alphas[round(float(timestep))])


def check_scheduler(scheduler: Any, moment: Moment = "latents") -> None:
    """Make sure that members with this scheduler can be combined, by letting a copy of it draw a known picture.

    A denoiser that knows the picture x₀ predicts exactly (x - α x₀) / σ. With it, every step must end at the level that
    ``levels`` names; and where latents are exchanged, steps must start from the latents they are given.

    Raises:
        ValueError: the scheduler calls the denoiser several times for one step, takes or keeps something unknown, or
            fails that trial; with the reason.
    """
    name = type(scheduler).__name__
    if getattr(scheduler, "order", 1) != 1 or not scheduler.config.get("skip_prk_steps", True):
        raise ValueError(
            f"{name} calls the denoiser several times for one step, and members can meet only at whole steps. Use a "
            f"scheduler of one call per step, such as DDIM, DPM-Solver++ or Euler (for PNDM: skip_prk_steps=True)."
        )
    _family(scheduler)
    kind = prediction_kind(scheduler)
    try:
        trial = try_out(scheduler, kind, levels)
    except Exception as error:  # whatever somebody else's scheduler may raise
        raise ValueError(
            f"{name} could not take {STEPS} steps by scheduler.step(prediction, timestep, latents): {error!r:.200}. "
            f"Use another scheduler, such as DDIM, DPM-Solver++ or Euler."
        ) from error
    if trial.worst > TOLERANCE:
        raise ValueError(
            f"{name} leaves latents {trial.worst:.0%} off the level of noise that its tables name at step {trial.at} "
            f"of {trial.steps}, so means computed from those would be wrong. Use another scheduler, such as DDIM, "
            f"DPM-Solver++ or Euler."
        )
    if moment == "latents" and trial.ignored:
        raise ValueError(
            f"{name} starts {trial.ignored} of {trial.steps} steps from latents that it kept itself, so what members "
            f"exchange there is lost. Use DDIM, DPM-Solver++ (multistep) or Euler; for UniPC set disable_corrector to "
            f"all steps; or combine predictions instead of latents."
        )


def schedule_difference(first: Any, second: Any) -> str:
    """What keeps two schedulers' latents from being exchanged, in words; empty if nothing does.

    The noise must be of one family and amount at every training step, and, once both are set up, at every step taken.
    Kinds of prediction may differ: they are told apart and translated.
    """
    one, two = _family(first), _family(second)
    if one != two:
        return f"latents of {type(first).__name__} are {one}, those of {type(second).__name__} are {two}"
    # Flow matching has no such entry before it is set up.
    ready = None not in [getattr(scheduler, "num_inference_steps", None) for scheduler in (first, second)]
    for name in ("alphas_cumprod", "timesteps", "sigmas") if ready else ("alphas_cumprod",):
        a, b = (getattr(scheduler, name, None) for scheduler in (first, second))
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if len(a) != len(b):
                return (
                    f"{name} has {len(a)} entries for {type(first).__name__} and {len(b)} for {type(second).__name__}"
                )
            a, b = a.cpu().float(), b.cpu().float()
            if not torch.allclose(a, b, rtol=1e-4, atol=1e-7):
                at = int((a - b).abs().argmax())
                return f"{name} differs, most at entry {at}: {a[at]:.5g} and {b[at]:.5g}"
    return ""


def _index(scheduler: Any, timestep: float | Tensor) -> int:
    for counted in (scheduler.step_index, scheduler.begin_index):
        if counted is not None:
            return int(counted)
    return int(scheduler.index_for_timestep(timestep))


def _of_sigma(scheduler: Any, sigma: Tensor) -> Level:
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma)
        return Level(float(alpha), float(sigma))
    return Level(1 - float(sigma) if flows(scheduler) else 1.0, float(sigma))


def _preserving(cumulative: Tensor | float) -> Level:
    return Level(float(cumulative) ** 0.5, (1 - float(cumulative)) ** 0.5)


def _after(scheduler: Any, timestep: int) -> Level:
    """Level after a step where there is ``alphas_cumprod`` alone: such schedulers each find the next timestep anew."""
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    if hasattr(scheduler, "plms_timesteps"):
        # PNDM takes its first step twice: the second time it is called with the timestep that it goes to.
        following = timestep if scheduler.counter == 1 else timestep - stride
        last = scheduler.final_alpha_cumprod
    elif hasattr(scheduler, "one"):
        following, last = int(scheduler.previous_timestep(timestep)), scheduler.one
    elif hasattr(scheduler, "step_index"):
        remaining = scheduler.timesteps[_index(scheduler, timestep) + 1 :]
        following, last = (int(remaining[0]) if len(remaining) else -1), 1.0
    else:
        following, last = timestep - stride, scheduler.final_alpha_cumprod
    return _preserving(scheduler.alphas_cumprod[following] if following >= 0 else last)


def _family(scheduler: Any) -> str:
    if hasattr(scheduler, "sigmas") or hasattr(scheduler, "alphas_cumprod"):
        if flows(scheduler):
            return "(1 - sigma) picture + sigma noise"
        if not hasattr(scheduler, "sigmas") or hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
            return "variance preserving"
        if hasattr(scheduler, "alphas_cumprod"):
            return "picture + sigma noise"
    raise ValueError(
        f"{type(scheduler).__name__} is of no known family, so nothing tells how much noise its latents hold. Use one "
        f"of DDIM, DDPM, PNDM, LCM, DPM-Solver++, Euler or flow-matching Euler."
    )
