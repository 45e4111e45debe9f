"""Where an ensemble's weights are while it trains, of which type, and what it keeps for the backward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from diffusemble.aggregators.base import Aggregator
from diffusemble.config.memory import MemoryConfig
from diffusemble.ensembles.base import Ensemble
from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.memory.measure import measure_weights
from diffusemble.memory.networks import networks_of
from diffusemble.memory.place import Placement
from diffusemble.memory.plan import Working, make_plan
from diffusemble.memory.recompute import recompute_blocks
from diffusemble.training.config import RunConfig

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def place(ensemble: Ensemble, config: RunConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Put an ensemble on ``device``: frozen weights in the type of the precision, and what learns in float32.

    Returns:
        What gives the experts their own memory back when it is left, where a memory plan has taken it.

    Raises:
        ValueError: a memory plan for experts that learn themselves, and meet at the output alone.
    """
    # Convolutions are a third faster forwards with their channels last, also on CPUs.
    ensemble.to(memory_format=torch.channels_last)
    ensemble.denoisers.to(dtype=TYPES[config.precision])
    for weight in ensemble.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    placed: AbstractContextManager[Any] = nullcontext()
    if config.memory is None:
        ensemble.to(device)
    else:
        placed = _planned(ensemble, config.memory, device)
    if config.gradient_checkpointing or config.memory is not None:
        _recompute(ensemble)
    return placed


def _planned(ensemble: Any, memory: MemoryConfig, device: torch.device) -> Placement:
    if not isinstance(ensemble, EnsembleDenoiser) and _learn(ensemble.denoisers):
        raise ValueError(
            "With lora experts learn, and at output level they run whole, so none may leave the device before the "
            "backward pass. Leave memory out (set gradient_checkpointing instead), or set lora to 0."
        )
    # Between two sheets neither VAE nor text encoders have anything to do on the device.
    chosen = memory.model_copy(update={"parts": memory.parts or "visit"})
    return Placement(
        ensemble, make_plan(measure_weights(networks_of(ensemble), memory.storage), Working(), chosen), device
    )


def _recompute(ensemble: Ensemble) -> None:
    if isinstance(ensemble, EnsembleDenoiser):
        recompute_blocks(ensemble)
    elif _learn(ensemble.denoisers):  # those that meet at the output and are frozen keep nothing
        ensemble.enable_gradient_checkpointing()
    if isinstance(ensemble.aggregator, Aggregator):
        ensemble.aggregator.gradient_checkpointing = True


def _learn(module: nn.Module) -> bool:
    return any(weight.requires_grad for weight in module.parameters())
