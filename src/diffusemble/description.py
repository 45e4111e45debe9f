"""What an ensemble is made of and what it costs, without running it: everything is counted on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffusemble.aggregators.base import Context
from diffusemble.aggregators.router import Router
from diffusemble.aggregators.storage import create, name_of
from diffusemble.blocks.base import Call
from diffusemble.blocks.example import CLIP_PROMPT, example
from diffusemble.ensembles.base import Ensemble
from diffusemble.ensembles.block_level import blocks_of
from diffusemble.ensembles.output_level import OutputEnsembleDenoiser
from diffusemble.experts.expert import Expert, downsampling

FLUX_SIDE = 128  # of the latents of FLUX's pictures, whose configuration does not say


@dataclass(frozen=True)
class Cost:
    """Floating-point operations, a multiplication with its addition counting as two.

    Convolutions and matrix products are counted, element-wise work is not. ``attention`` is the part of ``total`` that
    products of queries, keys and values take, which many published figures leave out.
    """

    total: int
    attention: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.total + other.total, self.attention + other.attention)

    def __mul__(self, times: int) -> Cost:
        return Cost(times * self.total, times * self.attention)


@dataclass(frozen=True)
class ExpertDescription:
    """One expert: parameters of its denoiser, and of its text encoders together; operations of one forward pass."""

    name: str
    source: str | None
    kind: str
    parameters: int
    text_parameters: int
    flops: int


@dataclass(frozen=True)
class Point:
    """One aggregation point: channels and grid ``(h, w)`` of its feature, and whether the features are aggregated (or,
    with a router, whether a new choice is made before it).
    """

    name: str
    channels: int
    grid: tuple[int, int]
    aggregated: bool


@dataclass(frozen=True)
class Description:
    """An ensemble in numbers.

    Attributes:
        experts: in the order of their maps.
        aggregator: its name and options.
        aggregator_parameters: what a training learns.
        latents: channels, height and width of the latents that the costs are for.
        points: in running order; at output level there is one.
        ensemble_flops: operations of one forward pass at batch 1, so that guidance doubles it; with a router, of the
            chosen experts alone.
        ensemble_attention_flops: those of them that attention's own products take.
    """

    experts: tuple[ExpertDescription, ...]
    aggregator: str
    aggregator_parameters: int
    latents: tuple[int, int, int]
    points: tuple[Point, ...]
    ensemble_flops: int
    ensemble_attention_flops: int

    @property
    def expert_flops(self) -> int:
        """Operations of the first expert, which at block level are those of any."""
        return self.experts[0].flops

    @property
    def ratio(self) -> float:
        """Cost of a step of the ensemble over that of its first expert."""
        return self.ensemble_flops / self.expert_flops


def describe(ensemble: Ensemble, latent_size: tuple[int, int] | None = None) -> Description:
    """Count sizes, parameters and cost of an ensemble.

    Args:
        ensemble: what to describe; it is not run.
        latent_size: height and width of the latents; the first expert's own size by default.

    Raises:
        ValueError: nothing is known about the class of the denoisers.
    """
    own = getattr(ensemble.config, "sample_size", FLUX_SIDE)
    height, width = latent_size or ((own, own) if isinstance(own, int) else own)
    with torch.device("meta"), torch.no_grad():
        level = _ask if isinstance(ensemble, OutputEnsembleDenoiser) else _walk
        walk = level(ensemble, height, width)
        together = _running(ensemble, walk) + _combining(ensemble, walk)
    aggregator = ensemble.aggregator
    chosen = aggregator.options.model_dump(exclude_none=True)
    options = ", ".join(f"{key} {value}" for key, value in chosen.items())
    return Description(
        experts=tuple(_expert(*one) for one in zip(ensemble.experts, walk.costs, strict=True)),
        aggregator=f"{name_of(aggregator)} ({options})",
        aggregator_parameters=_size(aggregator),
        latents=(walk.context.sample.numel() // (height * width), height, width),  # FLUX packs them
        points=tuple(
            Point(name, channels, grid, index in aggregator.points)
            for index, (name, channels, grid) in enumerate(
                zip(ensemble.points, aggregator.sizes.channels, walk.grids, strict=True)
            )
        ),
        ensemble_flops=together.total,
        ensemble_attention_flops=together.attention,
    )


def latent_size(ensemble: Ensemble, height: int, width: int) -> tuple[int, int]:
    """Height and width of the latents of a picture, in pixels.

    Raises:
        ValueError: the experts are bare denoisers, whose pictures have no size.
    """
    factor = downsampling(ensemble.experts[0].components.get("vae"))
    if factor is None:
        raise ValueError(
            "These experts are bare denoisers, without a VAE that gives pixels a size. Leave the size out."
        )
    return height // factor, width // factor


def count_flops(call: Callable[[], Any]) -> Cost:
    """Operations of ``call``, which must run on the meta device.

    There attention is taken apart into batched matrix products, and nothing else in a U-Net or in SABW uses these. (On
    a CPU the counter does not know the fused attention kernel.)
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return _so_far(counter)


def example_for(ensemble: Ensemble, denoiser: nn.Module, latents: tuple[int, int], batch: int = 1) -> Call:
    """A call of one expert's ``denoiser``, with prompts of its tokenizer's length."""
    tokenizer = ensemble.experts[0].components.get("tokenizer")
    return example(denoiser, latents, batch, tokenizer.model_max_length if tokenizer else CLIP_PROMPT)


# -- parts of the above; on the meta device, where tensors have shapes but no numbers ----------------------------------


@dataclass(frozen=True)
class Walk:
    """One pass: every expert's operations, those before the first block, the grid of every point, the context."""

    costs: tuple[Cost, ...]
    opening: Cost
    grids: tuple[tuple[int, int], ...]
    context: Context


def _walk(ensemble: Ensemble, height: int, width: int) -> Walk:
    """At block level all experts are like the first one."""
    first = ensemble.denoisers[0]
    blocks = blocks_of(type(first).from_config(first.config).eval())
    call = example_for(ensemble, blocks.denoiser, (height, width))
    grids = []
    with FlopCounterMode(display=False) as counter:
        flow = blocks.open(call.sample, call.timestep, call.inputs)
        opening = _so_far(counter)
        for name in blocks.names:
            feature = blocks.run(name, flow)
            grids.append((feature.map.shape[2], feature.map.shape[3]))
            flow = blocks.join(name, flow, feature)
        blocks.close(flow)
    context = Context(flow.text, flow.time, call.sample, call.timestep)
    return Walk((_so_far(counter),) * len(ensemble.experts), opening, tuple(grids), context)


def _ask(ensemble: OutputEnsembleDenoiser, height: int, width: int) -> Walk:
    """At output level every expert runs whole, in its own way."""
    costs, sizes = [], ensemble.sizes
    sample = torch.zeros(1, *sizes.channels, height, width)
    for family in ensemble.families:
        twin = type(family.denoiser).from_config(family.denoiser.config).eval()
        costs.append(count_flops(partial(family.example, twin, sample)))
    text = torch.zeros(1, *ensemble.families[0].shapes["encoder_hidden_states"])
    context = Context(text, torch.zeros(1, sizes.time), sample, torch.zeros(1))
    return Walk(tuple(costs), Cost(0, 0), ((height, width),), context)


def _running(ensemble: Ensemble, walk: Walk) -> Cost:
    """Operations of the experts: all of them, or with a router one of them, while all embed time and text."""
    first, *others = walk.costs
    return sum([walk.opening] * len(others) if isinstance(ensemble.aggregator, Router) else others, first)


def _combining(ensemble: Ensemble, walk: Walk) -> Cost:
    """Operations of the aggregator or router at all its points."""
    own = ensemble.aggregator
    if not _size(own):
        return Cost(0, 0)  # only products of matrices are counted, and there are none without weights
    twin = create(name_of(own), own.sizes, own.options.model_dump()).eval()
    entering = (walk.context.sample.shape[2:], *walk.grids)

    def combine() -> None:
        for point in sorted(twin.points):
            if isinstance(twin, Router):
                twin(point, torch.zeros(1, twin.channels(point), *entering[point]), walk.context)
            else:
                feature = torch.zeros(1, own.sizes.channels[point], *walk.grids[point])
                twin(point, [feature] * own.sizes.experts, walk.context)

    return count_flops(combine)


def _so_far(counter: FlopCounterMode) -> Cost:
    kinds = counter.get_flop_counts()["Global"]
    return Cost(counter.get_total_flops(), kinds.get(torch.ops.aten.bmm, 0))


def _expert(expert: Expert, cost: Cost) -> ExpertDescription:
    text = [part for name, part in expert.components.items() if name.startswith("text_encoder") and part is not None]
    kind = type(expert.denoiser).__name__
    sizes = _size(expert.denoiser), sum(map(_size, text))
    return ExpertDescription(expert.name, expert.source, kind, *sizes, cost.total)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
