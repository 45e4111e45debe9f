"""One resumable training loop for everything the zoo trains.

All randomness of a step comes from a generator seeded by the step's number, so a run that is killed and restarted goes
through the same batches, noise and dropping as one that never stopped.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
log = logging.getLogger("recipes.zoo")


@dataclass(frozen=True)
class Plan:
    """Length and rates of one training."""

    steps: int
    batch: int
    rate: float
    warmup: int = 100
    weight_decay: float = 0.01
    ema: float = 0.999
    seed: int = 0
    save_seconds: float = 90.0

    def rate_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to nothing."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.rate * 0.5 * (1 + math.cos(math.pi * done))


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of one step."""
    return torch.Generator().manual_seed(seed * 1_000_000_007 + step)


def epoch_indices(step: int, batch: int, count: int, seed: int) -> Tensor:
    """Indices of batch number `step` in an endless sequence of shuffled passes over `count` items."""
    parts, position, end = [], step * batch, (step + 1) * batch
    while position < end:
        epoch, start = divmod(position, count)
        order = torch.randperm(count, generator=step_generator(seed + 1, epoch))
        parts.append(order[start : start + end - position])
        position += len(parts[-1])
    return torch.cat(parts)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average, in place: average <- decay * average + (1 - decay) * model."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


@dataclass
class State(Generic[M]):
    """Everything a training needs to go on."""

    model: M
    average: M
    optimizer: torch.optim.Optimizer
    step: int = 0

    def save(self, path: Path) -> None:
        """Write to a temporary file, then rename: a kill at any moment leaves the last good checkpoint."""
        parts = {k: getattr(self, k).state_dict() for k in ("model", "average", "optimizer")}
        temporary = path.with_suffix(".tmp")
        torch.save({**parts, "step": self.step}, temporary)
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        """Restore a checkpoint that `save` wrote."""
        parts = torch.load(path, weights_only=True)
        for key in ("model", "average", "optimizer"):
            getattr(self, key).load_state_dict(parts[key])
        self.step = parts["step"]


def train(
    model: M,
    loss_at: Callable[[int, torch.Generator], Tensor],
    plan: Plan,
    folder: Path,
    on_save: Callable[[State[M]], None] = lambda state: None,
) -> M:
    """Train `model` in place to `plan.steps`, going on from `folder/checkpoint.pt` when there is one.

    Args:
        model: what to train.
        loss_at: loss of one step, given its number and its generator.
        plan: length and rates.
        folder: where `checkpoint.pt` and `log.jsonl` lie.
        on_save: called after each checkpoint (sample sheets, held-out loss).

    Returns:
        The moving average of the weights.

    Raises:
        FloatingPointError: when the loss is not finite; the last good checkpoint stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(model.parameters(), plan.rate, betas=(0.9, 0.99), weight_decay=plan.weight_decay)
    state = State(model, copy.deepcopy(model).requires_grad_(False), optimizer)
    if (folder / "checkpoint.pt").exists():
        state.load(folder / "checkpoint.pt")
    losses: list[Tensor] = []
    saved, first = time.monotonic(), state.step
    while state.step < plan.steps:
        losses.append(advance(state, loss_at, plan))
        if time.monotonic() - saved > plan.save_seconds or state.step == plan.steps:
            mean = torch.stack(losses).mean().item()
            if not math.isfinite(mean):
                where = f"steps {first} to {state.step} of {folder.name}"
                raise FloatingPointError(f"the loss must stay finite; {where} gave {mean}; the last checkpoint is kept")
            seconds = (time.monotonic() - saved) / len(losses)
            row = {"step": state.step, "loss": round(mean, 6), "seconds_per_step": round(seconds, 4)}
            state.save(folder / "checkpoint.pt")
            with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            log.info("%s %s", folder.name, row)
            on_save(state)
            losses, saved, first = [], time.monotonic(), state.step
    return state.average


def advance(state: State[M], loss_at: Callable[[int, torch.Generator], Tensor], plan: Plan) -> Tensor:
    """One optimiser step; returns its loss."""
    for group in state.optimizer.param_groups:
        group["lr"] = plan.rate_at(state.step)
    loss = loss_at(state.step, step_generator(plan.seed, state.step))
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    state.optimizer.step()
    state.step += 1
    follow(state.average, state.model, min(plan.ema, state.step / (state.step + 9)))
    return loss.detach()
