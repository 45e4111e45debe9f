"""What members must have in common where they meet: timesteps and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffusemble.latent.base import Step
from diffusemble.latent.schedules import schedule_difference


def check_timesteps(names: tuple[str, str], schedulers: tuple[Any, Any]) -> None:
    """Make sure, at the first step, that two members were set up for the same steps.

    Raises:
        ValueError: names both and the difference.
    """
    base, other = (scheduler.timesteps.cpu().float() for scheduler in schedulers)
    if len(base) != len(other) or not torch.allclose(base, other):
        raise ValueError(
            f"Members draw in step, so they need the same timesteps; the base {names[0]!r} has {_shown(base)}, member "
            f"{names[1]!r} has {_shown(other)}. Give their calls the same num_inference_steps, and their schedulers "
            f"the same spacing."
        )
    difference = schedule_difference(*schedulers)
    if difference:
        raise ValueError(
            f"Members need one noise schedule; for the base {names[0]!r} and member {names[1]!r}, {difference}. Use "
            f"schedulers of one kind and configuration."
        )


def check_steps(named: Mapping[str, Step]) -> None:
    """Make sure that steps of several members, the base first, can be combined.

    Raises:
        ValueError: names base and member, and the difference.
    """
    (base_name, base), *others = named.items()
    for name, step in others:
        if step.timestep != base.timestep:
            raise ValueError(
                f"Members draw in step; at step {base.index} the base {base_name!r} is at timestep {base.timestep:g}, "
                f"member {name!r} at {step.timestep:g}. Begin at the same one: give img2img members the same strength, "
                f"or let all begin from noise (strength=1.0)."
            )
        if step.sample.device != base.sample.device:
            raise ValueError(
                f"Members exchange latents on one device; those of the base {base_name!r} are on {base.sample.device}, "
                f"those of member {name!r} on {step.sample.device}. Move the pipelines to one."
            )
        if step.sample.shape != base.sample.shape:
            raise ValueError(
                f"Members exchange latents of one shape; the base {base_name!r} has {list(base.sample.shape)}, member "
                f"{name!r} {list(step.sample.shape)}. Give their calls the same height, width and number of pictures."
            )


def _shown(timesteps: Tensor) -> str:
    shown = ", ".join(f"{value:g}" for value in timesteps[:3].tolist())
    return f"{len(timesteps)} ({shown}, ...)"
