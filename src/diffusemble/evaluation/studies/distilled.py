"""Very few steps: distilled ensembles against the undistilled one and the best expert."""

from __future__ import annotations

from diffusemble.evaluation.studies.compare import best_expert, title_of
from diffusemble.evaluation.studies.config import DistilledConfig
from diffusemble.evaluation.studies.experts import at_steps
from diffusemble.evaluation.studies.findings import Findings, in_words, joined
from diffusemble.evaluation.studies.lab import Lab
from diffusemble.evaluation.studies.plots import lines
from diffusemble.evaluation.systems import LEARNED, System, build_systems, select
from diffusemble.evaluation.tables import Cell, Table


def run(config: DistilledConfig, lab: Lab) -> Findings:
    """Scores at every number of steps, against the undistilled ensemble at the same steps and at the usual ones.

    Raises:
        ValueError: no distilled ensembles are given.
    """
    if not config.folders:
        raise ValueError(
            "This study compares distilled ensembles, and none are given. Distil one, and give its folder: "
            "folders.lcm=PATH, with as many more names as you like."
        )
    systems = build_systems(lab.ensemble)
    experts = [system for system in systems if system.kind == "expert"]
    best = best_expert(lab.measure(experts, draw=False, span=(0, 0.1)))
    usual = select(systems, (best.name, LEARNED))
    drawn = lab.measure(
        [at_steps(s, n) for s in usual for n in (*config.at, config.steps)], loss=False, span=(0.1, 0.5)
    )
    settings = {"guidance_scale": config.few_guidance}
    few = [
        System(name, f"distilled: {name}", "ensemble", lab.load(source).pipeline(), settings)
        for name, source in config.folders.items()
    ]
    asked = [at_steps(system, n) for system in few for n in config.at]
    drawn |= lab.measure(asked, loss=False, span=(0.5, 1), scheduler=config.few)
    metric = config.metrics[0]
    rows: list[list[Cell]] = []
    curves: dict[str, list[float]] = {}
    told: list[str] = []
    for system in (*usual, *few):
        for n in (*config.at, *([config.steps] if system in usual else [])):
            own = drawn[f"{system.name}-{n}"].scores[metric]
            same, whole = (drawn[f"{LEARNED}-{m}"].scores[metric] for m in (n, config.steps))
            gaps = lab.gap(own, same, lab.jobs), lab.gap(own, whole, lab.jobs)
            mine = system.name == LEARNED
            rows.append([system.title, n, float(own.mean()), None if mine else gaps[0], gaps[1]])
            if n in config.at:
                curves.setdefault(system.title.replace("*", ""), []).append(float(own.mean()))
            if system in few and n == min(config.at):
                told.append(f"{system.name} {in_words(gaps[0])}")
    head = ("system", "steps", title_of(metric), "to the ensemble at these steps", f"to it at {config.steps}")
    fewest = min(config.at)
    return Findings(
        f"At {fewest} step{'s' if fewest > 1 else ''}, differences in {title_of(metric).lower()} to the undistilled "
        f"ensemble: {joined(told)}.",
        (Table("distilled", "Higher is better; differences are paired by picture.", head, rows),),
        {"distilled.png": lines(curves, config.at, ("steps", title_of(metric)))},
        {"captions drawn": len(lab.jobs)},
    )
