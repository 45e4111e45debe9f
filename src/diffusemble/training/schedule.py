"""The forward process that experts were trained with, read from what their scheduler carries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from diffusemble.experts.expert import Expert
from diffusemble.latent.schedules import flows
from diffusemble.training.objective import FLOW, Diffusion


def diffusion_of(experts: Sequence[Expert], device: torch.device, image_tokens: int | None = None) -> Diffusion:
    """The forward process of the experts' own scheduler.

    Args:
        experts: of one process; the first one's scheduler speaks for all.
        device: for the tables.
        image_tokens: length of the denoiser's sequence, on which FLUX's shift depends.

    Raises:
        ValueError: the experts come without a scheduler, or with one that training has no formula for.
    """
    scheduler = experts[0].components.get("scheduler")
    if scheduler is None:
        raise ValueError(
            f"Training needs the noise schedule of the experts, but {experts[0].name!r} comes without a scheduler. "
            f"Load whole pipelines with load_experts([...])."
        )
    return process_of(scheduler, image_tokens).to(device)


def process_of(scheduler: Any, image_tokens: int | None = None) -> Diffusion:
    """The forward process that a scheduler describes: a diffusion has ``alphas_cumprod``, flow matching scales noise.

    Raises:
        ValueError: it is neither, or predicts something unknown.
    """
    config = scheduler.config
    kind = config.get("prediction_type", "epsilon")
    if flows(scheduler) or kind == FLOW:
        return Diffusion.flow(config.num_train_timesteps, shift_of(scheduler, image_tokens))
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            f"{type(scheduler).__name__} has neither alphas_cumprod (diffusion) nor scale_noise (flow matching), so "
            f"nothing tells how its experts were trained. Give them the scheduler of their base model."
        )
    return Diffusion.preserving(scheduler.alphas_cumprod.float(), kind)


def shift_of(scheduler: Any, image_tokens: int | None = None) -> float:
    """How far a schedule of flow matching leans to much noise (``levels.shifted``).

    Where it depends on the size (FLUX), its logarithm μ (or μ itself, ``time_shift_type`` linear) is a straight line
    through (``base_image_seq_len``, ``base_shift``) and (``max_image_seq_len``, ``max_shift``); 1 for unknown sizes.
    """
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        own = scheduler.shift if hasattr(type(scheduler), "shift") else config.get("shift", config.get("flow_shift"))
        return float(own or 1.0)
    if image_tokens is None:
        return 1.0
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu = low + (high - low) / (many - few) * (image_tokens - few)
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)
