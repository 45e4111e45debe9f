"""One good expert with copies of a poor one: does the aggregator learn whom not to listen to?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.evaluation.statistics import Interval
from diffusemble.evaluation.studies.compare import comparison, loss_gaps, tally
from diffusemble.evaluation.studies.config import CopiesConfig
from diffusemble.evaluation.studies.findings import Findings
from diffusemble.evaluation.studies.lab import Lab, Measured
from diffusemble.evaluation.studies.plots import lines
from diffusemble.evaluation.studies.trained import Variant, train_variants
from diffusemble.evaluation.systems import System, plain_pipeline
from diffusemble.evaluation.tables import Cell
from diffusemble.experts.expert import Expert
from diffusemble.experts.load import load_experts


def run(config: CopiesConfig, lab: Lab) -> Findings:
    """Loss of the trained aggregator and of the block average for every number of copies, against the good one."""
    good, poor = _pair(config, lab)
    sets = {f"copies-{count}": (good, *copies_of(poor, count)) for count in config.counts}
    variants = {name: Variant(f"SABW, {len(experts) - 1} × *{poor.name}*") for name, experts in sets.items()}
    trained = train_variants(variants, lab, sets)
    systems = [System(good.name, f"expert *{good.name}*", "expert", plain_pipeline(good))]
    systems.append(System(poor.name, f"expert *{poor.name}*", "expert", plain_pipeline(poor)))
    for name, ensemble in trained.items():
        systems.append(System(name, variants[name].title, "ensemble", ensemble.pipeline()))
        mean = EnsembleDenoiser(sets[name], "mean").eval().pipeline()
        systems.append(System(f"{name}-mean", variants[name].title.replace("SABW", "block average"), "control", mean))
    measured = lab.measure(systems, span=(0.8, 1))
    alone = measured[good.name]
    gaps = loss_gaps(measured, alone, lab)
    more: dict[str, dict[str, Cell]] = {
        "copies": {name: len(sets[name.removesuffix("-mean")]) - 1 for name in measured if name.startswith("copies-")}
    }
    return Findings(
        _sentence(good, poor, {name: gaps[name] for name in trained}, {n: gaps[f"{n}-mean"] for n in trained}),
        (comparison(measured, alone, lab, more),),
        {"copies.png": _figure(list(trained), measured, alone, sets)},
        {"held-out pictures": len(lab.rows), "captions drawn": len(lab.jobs)},
    )


def copies_of(expert: Expert, count: int) -> tuple[Expert, ...]:
    """The same expert under ``count`` names; its weights are shared."""
    return tuple(replace(expert, name=f"{expert.name} {number}") for number in range(1, count + 1))


def _pair(config: CopiesConfig, lab: Lab) -> tuple[Expert, Expert]:
    """The good one and the poor one: as asked for, or by their held-out losses."""
    experts = {expert.name: expert for expert in lab.ensemble.experts}
    if config.good is None or config.poor is None:
        systems = [System(name, f"expert *{name}*", "expert", plain_pipeline(one)) for name, one in experts.items()]
        measured = lab.measure(systems, draw=False, span=(0, 0.05))
        ranked = sorted(measured.values(), key=lambda one: one.loss)
    good = experts[ranked[0].name] if config.good is None else _load(config.good, lab)
    poor = experts[ranked[-1].name] if config.poor is None else _load(config.poor, lab)
    if good.name == poor.name:
        raise ValueError(f"The good expert and the poor one are both {good.name!r}. Give another one as good or poor.")
    return good, poor


def _load(source: str, lab: Lab) -> Expert:
    found: Sequence[Expert] = load_experts([source], device=lab.ensemble.device, dtype=lab.ensemble.dtype)
    return found[0]


def _sentence(good: Expert, poor: Expert, ours: dict[str, Interval], means: dict[str, Interval]) -> str:
    return (
        f"Against {good.name} alone, the trained aggregator with copies of {poor.name} has a held-out loss that is, "
        f"over {len(ours)} numbers of copies: {tally(ours, lower_is_better=True)}; the block average: "
        f"{tally(means, lower_is_better=True)}."
    )


def _figure(
    names: Sequence[str], measured: dict[str, Measured], alone: Measured, sets: dict[str, tuple[Expert, ...]]
) -> object:
    series = {
        "SABW": [measured[name].loss for name in names],
        "block average": [measured[f"{name}-mean"].loss for name in names],
        "the good one alone": [alone.loss] * len(names),
    }
    return lines(series, [len(sets[name]) - 1 for name in names], ("copies", "held-out loss ×1000"), main="SABW")
