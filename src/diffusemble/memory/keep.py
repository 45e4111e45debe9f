"""A drawing within a memory budget: choose a plan, place the ensemble, hold to it, say what it took."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from diffusemble.config.generate import GenerateConfig
from diffusemble.config.memory import MemoryConfig
from diffusemble.config.units import format_bytes, parse_bytes
from diffusemble.drawing import placement
from diffusemble.ensembles.base import Ensemble
from diffusemble.memory.measure import measure_weights, vae_of
from diffusemble.memory.place import Placement
from diffusemble.memory.plan import Plan, choose
from diffusemble.memory.working import measure_working

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawing:
    """What a plan is for: pixels of a picture (None: the experts' own size), pictures at a time, guidance or not."""

    height: int | None = None
    width: int | None = None
    batch: int = 1
    guided: bool = True


@dataclass(frozen=True)
class MemoryReport:
    """What a drawing took.

    Attributes:
        plan: what it was drawn by.
        budget: bytes that it had, if there was a limit.
        weights: most bytes of weights that were on the device at once, as they were counted.
        allocated: most bytes that were allocated there, where the device tells.
    """

    plan: Plan
    budget: int | None
    weights: int
    allocated: int | None

    def __str__(self) -> str:
        said = [f"at most {format_bytes(self.weights)} of weights were on the device at once"]
        if self.allocated is not None:
            said.append(f"{format_bytes(self.allocated)} in all")
        if self.budget is not None:
            said.append(f"the budget was {format_bytes(self.budget)}")
        return "; ".join(said)


def choose_plan(
    ensemble: Ensemble, budget: str | None, drawing: Drawing | None = None, choice: MemoryConfig | None = None
) -> Plan:
    """The fastest plan that keeps within a budget.

    Args:
        ensemble: what draws, wherever its weights are.
        budget: such as ``"8GB"``; None for the fastest plan that ``choice`` allows.
        drawing: how large the pictures are.
        choice: what the plan may do.

    Raises:
        ValueError: no plan fits; the message says what the least is. Or the ensemble has no blocks, because its
            experts meet at the output alone.
    """
    choice, drawing = choice or MemoryConfig(), drawing or Drawing()
    weights = measure_weights(ensemble, choice.storage)
    working = measure_working(ensemble, _latents(ensemble, drawing), drawing.batch, drawing.guided)
    return choose(weights, working, choice, None if budget is None else parse_bytes(budget))


def on_host(config: GenerateConfig) -> GenerateConfig:
    """``config`` with its experts loaded where they rest, if it has a memory plan."""
    if not planned(config):
        return config
    _, dtype = placement(config.device, config.dtype)
    return config.model_copy(update={"device": "cpu", "dtype": str(dtype).removeprefix("torch.")})


def planned(config: GenerateConfig) -> bool:
    """Whether a configuration asks for a memory plan."""
    return config.memory_budget is not None or config.memory is not None


class Keeper:
    """An ensemble placed by a plan, and the limit it has to keep."""

    def __init__(self, placed: Placement, budget: int | None) -> None:
        self.placed, self.budget = placed, budget

    def report(self) -> MemoryReport:
        """What was taken up to now; says so if the estimate was wrong."""
        plan, device = self.placed.plan, self.placed.device
        allocated = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        if allocated is not None and allocated > plan.peak:
            log.warning(
                "This drawing took %s, more than the plan's estimate of %s.",
                format_bytes(allocated),
                format_bytes(plan.peak),
            )
        return MemoryReport(plan, self.budget, self.placed.residence.peak, allocated)


@contextmanager
def within_memory(ensemble: Ensemble, config: GenerateConfig) -> Iterator[Keeper | None]:
    """Place ``ensemble`` as its configuration asks; without a budget and a plan, do nothing.

    On CUDA the budget is a limit for the whole process: what would take more fails, as it would on a smaller card. On
    other devices only weights are counted.

    Raises:
        ValueError: no plan fits; the message says what the least is.
    """
    if not planned(config):
        yield None
        return
    device, _ = placement(config.device, config.dtype)
    drawing = Drawing(config.height, config.width, config.batch, config.guidance > 1)
    plan = choose_plan(ensemble, config.memory_budget, drawing, config.memory)
    log.info("memory plan: %s", plan)
    budget = None if config.memory_budget is None else parse_bytes(config.memory_budget)
    with _limited(device, budget), Placement(ensemble, plan, device) as placed:
        yield Keeper(placed, budget)


@contextmanager
def _limited(device: torch.device, budget: int | None) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    torch.cuda.reset_peak_memory_stats(device)
    total = torch.cuda.get_device_properties(device).total_memory
    if budget is not None:
        torch.cuda.set_per_process_memory_fraction(min(1.0, budget / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _latents(ensemble: Ensemble, drawing: Drawing) -> tuple[int, int]:
    """Height and width of the latents of a drawing."""
    own = getattr(ensemble.config, "sample_size", None) or 128  # FLUX, whose configuration does not say
    height, width = (own, own) if isinstance(own, int) else own
    vae = vae_of(ensemble)
    if vae is None or (drawing.height is None and drawing.width is None):
        return height, width
    config = vae.config
    factor = 2 ** (len(config.block_out_channels) - 1)  # type: ignore[union-attr,arg-type]
    return (drawing.height or height * factor) // factor, (drawing.width or width * factor) // factor
