"""Parameters, operations, seconds and memory of a step, for every way to combine and every number of experts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from diffusemble.aggregators.storage import name_of
from diffusemble.description import Description, describe
from diffusemble.ensembles.block_level import EnsembleDenoiser, build_aggregator
from diffusemble.evaluation.studies.clock import Timed, step_of, time_calls
from diffusemble.evaluation.studies.config import CostConfig
from diffusemble.evaluation.studies.findings import Findings
from diffusemble.evaluation.studies.lab import Lab
from diffusemble.evaluation.studies.plots import lines
from diffusemble.evaluation.tables import Cell, Table
from diffusemble.experts.expert import Expert

ALONE, LEARNED = "one expert, or any merged model", "SABW"
SD15 = {"sample_size": 64, "cross_attention_dim": 768}
HEAD = ("way to draw", "experts", "parameters, M", "learned, M", "GFLOP", "of it attention", "× one expert")
TIMED = (*HEAD, "ms", "× one expert, time", "weights, MiB", "working memory, MiB")


def run(config: CostConfig, lab: Lab) -> Findings:
    """The ensemble's own experts, counted and timed; and Stable Diffusion 1.5's sizes, counted."""
    experts = enough(lab.ensemble.experts, config.experts)
    rows: list[list[Cell]] = []
    curves: dict[str, list[float]] = {}
    counts = range(2, config.experts + 1)
    for n in counts:
        lab.tell((n - 2) / (config.experts - 1), f"{n} experts")
        built = {ALONE: EnsembleDenoiser(experts[:1]).eval(), **ways(experts[:n], lab.ensemble, config.guidance)}
        timed = time_calls(
            {name: step_of(one) for name, one in built.items()}, config.repeats, str(lab.ensemble.device)
        )
        for name, ensemble in built.items():
            if name != ALONE or n == 2:
                rows.append(_row(name, ensemble, timed, timed[ALONE]))
            curves.setdefault(name, []).append(timed[name].seconds / timed[ALONE].seconds)
    own = Table("own", "A step of one picture with guidance: both halves in one batch.", TIMED, rows)
    published = Table(
        "sd15",
        "The same operations for Stable Diffusion 1.5, 512 px; counted, not run.",
        HEAD,
        sd15(counts, config.presets),
    )
    ours = next(row for row in reversed(rows) if row[0] == LEARNED)
    sentence = (
        f"With {ours[1]} experts of this size a step of SABW takes {ours[6]:.2f} × the operations and {ours[8]:.2f} × "
        f"the time of one expert, of which the experts themselves are {ours[1]} × the operations."
    )
    figure = lines(curves, list(counts), ("experts", "seconds of a step, × one expert"), main=LEARNED)
    return Findings(sentence, (own, published), {"seconds.png": figure}, {"rounds timed": config.repeats})


def enough(experts: Sequence[Expert], count: int) -> tuple[Expert, ...]:
    """``count`` experts that share no memory: the given ones, then copies of them."""
    found = list(experts[:count])
    while len(found) < count:
        twin = experts[len(found) % len(experts)]
        found.append(replace(twin, name=f"{twin.name} {len(found)}", denoiser=copy.deepcopy(twin.denoiser)))
    return tuple(found)


def ways(experts: Sequence[Expert], like: EnsembleDenoiser, guidance: float) -> dict[str, EnsembleDenoiser]:
    """Ensembles of these experts, SABW with the sizes of the given one."""
    sizes = like.aggregator.options.model_dump() if name_of(like.aggregator) == "sabw" else {"preset": "tiny"}
    shared = {key: value for key, value in sizes.items() if key not in ("spatial", "points")}
    named: Mapping[str, tuple[str, dict[str, Any]]] = {
        "noise average": ("mean", {"points": "last"}),
        "block average": ("mean", {}),
        "MagicFusion": ("magicfusion", {"guidance": max(guidance, 1.5)}),
        LEARNED: ("sabw", sizes),
        "mixture, one expert for each step": ("mixture-denoisers", {**shared, "route_guidance": "shared"}),
        "mixture, one expert for each block": ("mixture-blocks", {**shared, "route_guidance": "shared"}),
        "timestep switch": ("timestep-switch", {}),
    }
    denoisers = [expert.denoiser for expert in experts]
    built = {title: build_aggregator(name, denoisers, **options) for title, (name, options) in named.items()}
    return {
        title: EnsembleDenoiser(experts, aggregator.to(device=like.device, dtype=like.dtype)).eval()
        for title, aggregator in built.items()
    }


def sd15(counts: Sequence[int], presets: Sequence[str]) -> list[list[Cell]]:
    """Rows for experts of Stable Diffusion 1.5's size, on the meta device."""
    rows: list[list[Cell]] = []
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15)
        rows.append(_counted(ALONE, describe(EnsembleDenoiser([unet])), 1))
        for preset in presets:
            for n in counts:
                ensemble = EnsembleDenoiser([unet] * n, build_aggregator("sabw", [unet] * n, preset=preset))
                rows.append(_counted(f"SABW `{preset}`", describe(ensemble), n))
    return rows


def _row(name: str, ensemble: EnsembleDenoiser, timed: Mapping[str, Timed], alone: Timed) -> list[Cell]:
    one = timed[name]
    weights = sum(weight.numel() * weight.element_size() for weight in ensemble.parameters()) / 2**20
    working = None if one.working is None else one.working / 2**20
    cells: list[Cell] = [1000 * one.seconds, one.seconds / alone.seconds, weights, working]
    return [*_counted(name, describe(ensemble), len(ensemble.experts)), *cells]


def _counted(name: str, found: Description, n: int) -> list[Cell]:
    learned = found.aggregator_parameters
    parameters = sum(expert.parameters for expert in found.experts) + learned
    guided = 2 / 1e9  # both halves of guidance
    operations = guided * found.ensemble_flops, guided * found.ensemble_attention_flops
    return [name, n, parameters / 1e6, learned / 1e6, *operations, found.ratio]
