"""A drawing within a memory budget: choose a plan, place the ensemble, hold to it, say what it took."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from diffusemble.config.generate import GenerateConfig
from diffusemble.config.memory import MemoryConfig
from diffusemble.config.units import format_bytes, parse_bytes
from diffusemble.drawing import Stages, placement
from diffusemble.ensembles.base import Ensemble
from diffusemble.experts.expert import downsampling
from diffusemble.memory.bundle import bytes_of
from diffusemble.memory.company import Drawers
from diffusemble.memory.measure import measure_weights
from diffusemble.memory.networks import networks_of
from diffusemble.memory.place import Placement
from diffusemble.memory.plan import Plan, choose
from diffusemble.memory.residence import Residence
from diffusemble.memory.working import measure_working
from diffusemble.scene.config import SceneConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawing:
    """What a plan is for.

    Attributes:
        height, width: of a picture in pixels; the experts' own size by default.
        batch: pictures at a time.
        guided: whether guidance doubles the batch.
        things: in boxes that controls are told of, of every picture.
    """

    height: int | None = None
    width: int | None = None
    batch: int = 1
    guided: bool = True
    things: int = 0


@dataclass(frozen=True)
class MemoryReport:
    """What a drawing took.

    Attributes:
        plan: what it was drawn by.
        refiner: the plan of a second stage, if there was one.
        budget: bytes that it had, if there was a limit.
        weights: most bytes of weights that were on the device at once, as they were counted.
        allocated: most bytes that were allocated there, where the device tells.
    """

    plan: Plan
    refiner: Plan | None
    budget: int | None
    weights: int
    allocated: int | None

    def __str__(self) -> str:
        said = [f"at most {format_bytes(self.weights)} of weights were on the device at once"]
        if self.allocated is not None:
            said.append(f"{format_bytes(self.allocated)} in all")
        if self.refiner is not None:
            said.append(f"the refiner's turn: {self.refiner}")
        if self.budget is not None:
            said.append(f"the budget was {format_bytes(self.budget)}")
        return "; ".join(said)


def choose_plan(
    ensemble: Drawers,
    budget: str | None,
    drawing: Drawing | None = None,
    choice: MemoryConfig | None = None,
    pipelines: Sequence[Any] = (),
    beside: int = 0,
) -> Plan:
    """The fastest plan that keeps within a budget.

    Args:
        ensemble: what draws, wherever its weights are.
        budget: such as ``"8GB"``; None for the fastest plan that ``choice`` allows.
        drawing: how large the pictures are.
        choice: what the plan may do.
        pipelines: that draw with it, if they have ControlNets or image encoders, or are around some of its experts.
        beside: bytes of weights that something else keeps on the device.

    Raises:
        ValueError: no plan fits; the message says what the least is. Or a network's needs are not known.
    """
    choice, drawing = choice or MemoryConfig(), drawing or Drawing()
    networks = networks_of(ensemble, pipelines)
    weights = measure_weights(networks, choice.storage)
    latents = latents_of(ensemble, drawing)
    working = measure_working(networks, latents, drawing.batch, drawing.guided, drawing.things)
    own = replace(weights, outside=weights.outside + beside)
    return choose(own, working, choice, None if budget is None else parse_bytes(budget))


def on_host(config: GenerateConfig) -> GenerateConfig:
    """``config`` with its experts loaded where they rest, if it has a memory plan."""
    if not planned(config):
        return config
    _, dtype = placement(config.device, config.dtype)
    refiner = config.refiner and config.refiner.model_copy(update={"device": "cpu"})
    own = {"device": "cpu", "dtype": str(dtype).removeprefix("torch."), "refiner": refiner}
    return config.model_copy(update=own)


def planned(config: GenerateConfig | SceneConfig) -> bool:
    """Whether a configuration asks for a memory plan."""
    return config.memory_budget is not None or config.memory is not None


Drawn: TypeAlias = tuple[Drawers, Sequence[Any]]
"""Who draws, and the pipelines with it."""


class Keeper:
    """What a plan has placed, one placement for each stage, and the limit it has to keep."""

    def __init__(self, stages: Sequence[Placement], budget: int | None) -> None:
        self.stages, self.budget = tuple(stages), budget

    def report(self) -> MemoryReport:
        """What was taken up to now; says so if the estimate was wrong."""
        plans, device = [one.plan for one in self.stages], self.stages[0].device
        allocated = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        estimate = max(plan.peak for plan in plans)
        if allocated is not None and allocated > estimate:
            log.warning(
                "This drawing took %s, more than the plan's estimate of %s.",
                format_bytes(allocated),
                format_bytes(estimate),
            )
        weights = self.stages[0].residence.peak
        return MemoryReport(plans[0], (*plans[1:], None)[0], self.budget, weights, allocated)


@contextmanager
def within_memory(
    config: GenerateConfig, ways: Sequence[Stages], refiner: Ensemble | None = None
) -> Iterator[Keeper | None]:
    """Place what draws as a configuration asks; without a budget and a plan, do nothing.

    On CUDA the budget is a limit for the whole process: what would take more fails, as it would on a smaller card. On
    other devices only weights are counted. Two stages take turns: while one draws, the other is away.

    Args:
        config: whose ``memory_budget`` and ``memory`` count.
        ways: what is drawn one after the other with the same experts; the last one has all of them.
        refiner: draws the last steps of each.

    Raises:
        ValueError: no plan fits; the message says what the least is.
    """
    if not planned(config):
        yield None
        return
    main = ways[-1]
    drawn: list[Drawn] = [(main.ensemble, [way.first for way in ways])]
    drawn += [] if refiner is None else [(refiner, [main.second])]
    with kept(config, drawn, _plans(config, drawn)) as keeper:
        for way in ways[:-1]:
            keeper.stages[0].adopt(way.ensemble)
        yield keeper


@contextmanager
def kept(config: GenerateConfig | SceneConfig, drawn: Sequence[Drawn], plans: Sequence[Plan]) -> Iterator[Keeper]:
    """Place what draws by plans, and hold the device to the budget of ``config``; several stages take turns."""
    device, _ = placement(config.device, config.dtype)
    budget = None if config.memory_budget is None else parse_bytes(config.memory_budget)
    residence, stages = Residence(device), list[Placement]()
    for plan in plans:
        log.info("memory plan: %s", plan)
    with ExitStack() as stack:
        stack.enter_context(_limited(device, budget))
        # The last stage first: it steps aside before the other one comes.
        for (ensemble, pipelines), plan in reversed(list(zip(drawn, plans, strict=True))):
            for later in stages:
                later.step_aside()
            stages.insert(0, stack.enter_context(Placement(ensemble, plan, device, pipelines, residence)))
        for stage in stages:
            stage.others = [other for other in stages if other is not stage]
        yield Keeper(stages, budget)


def _plans(config: GenerateConfig, drawn: Sequence[Drawn]) -> list[Plan]:
    """A plan for every stage; of the other stage the first weight is there, too."""
    choice, ensemble = config.memory or MemoryConfig(), drawn[0][0]
    if len(drawn) > 1:
        choice = choice.model_copy(update={"parts": choice.parts or "visit"})
    batch = min(config.batch, len(config.prompts) * len(config.seeds))
    drawing = Drawing(config.height, config.width, batch, config.guidance > 1)
    if len(drawn) > 1:  # the second stage draws at the first one's size, not at its own
        factor, (height, width) = downsampling(networks_of(ensemble).vaes[0]) or 1, latents_of(ensemble, drawing)
        drawing = replace(drawing, height=factor * height, width=factor * width)
    firsts = [bytes_of([next(one.parameters())]) for one, _ in drawn]
    plans = []
    for (one, pipelines), own in zip(drawn, firsts, strict=True):
        plans.append(choose_plan(one, config.memory_budget, drawing, choice, pipelines, sum(firsts) - own))
    return plans


@contextmanager
def _limited(device: torch.device, budget: int | None) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    total = torch.cuda.get_device_properties(index).total_memory  # wakes CUDA, without which there is nothing to reset
    torch.cuda.reset_peak_memory_stats(index)
    read = getattr(torch.cuda, "get_per_process_memory_fraction", None)  # since torch 2.8
    before = 1.0 if read is None else read(index)
    if budget is not None:
        torch.cuda.set_per_process_memory_fraction(min(before, budget / total), index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, index)


def latents_of(ensemble: Drawers, drawing: Drawing) -> tuple[int, int]:
    """Height and width of the latents of a drawing."""
    own = getattr(ensemble.config, "sample_size", None) or 128  # FLUX, whose configuration does not say
    height, width = (own, own) if isinstance(own, int) else own
    vaes = networks_of(ensemble).vaes
    if not vaes:
        return height, width
    factor = downsampling(vaes[0]) or 1
    return (drawing.height or height * factor) // factor, (drawing.width or width * factor) // factor
