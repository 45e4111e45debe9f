"""Fewer steps: how every way to combine the experts holds up when there is less time to draw."""

from __future__ import annotations

from collections.abc import Mapping

from diffusemble.evaluation.config import BenchConfig
from diffusemble.evaluation.specs import choose_systems
from diffusemble.evaluation.statistics import Interval
from diffusemble.evaluation.studies.compare import best_expert, score_cells, score_head, tally, title_of
from diffusemble.evaluation.studies.config import StepsConfig
from diffusemble.evaluation.studies.experts import at_steps
from diffusemble.evaluation.studies.findings import Findings, verdict
from diffusemble.evaluation.studies.lab import Lab, Measured
from diffusemble.evaluation.studies.plots import lines
from diffusemble.evaluation.systems import LEARNED, System, build_systems, select
from diffusemble.evaluation.tables import Cell, Table


def run(config: StepsConfig, lab: Lab) -> Findings:
    """Scores of each system at each number of steps, against the best expert and against itself."""
    systems = build_systems(lab.ensemble, guidance=config.guidance)
    experts = [system for system in systems if system.kind == "expert"]
    best = best_expert(lab.measure(experts, draw=False, span=(0, 0.1)))
    asked = BenchConfig(ensemble=config.ensemble, systems=config.systems, guidance=config.guidance)
    compared = (*select(systems, (best.name,)), *choose_systems(asked, lab.ensemble).systems)
    drawn = lab.measure([at_steps(s, steps) for s in compared for steps in config.at], loss=False, span=(0.1, 1))
    most, metric = max(config.at), config.metrics[0]
    rows: list[list[Cell]] = []
    curves: dict[str, list[float]] = {}
    for system in compared:
        for steps in config.at:
            own, alone, itself = (drawn[name] for name in _names(system, best, steps, most))
            rows.append([system.title, steps, *score_cells(own, [alone, itself], lab)])
            curves.setdefault(system.title.replace("*", ""), []).append(float(own.scores[metric].mean()))
    head = ("system", "steps", *score_head(config.metrics, ["the best expert", f"itself at {most} steps"]))
    ours = {
        steps: lab.gap(
            drawn[f"{LEARNED}-{steps}"].scores[metric], drawn[f"{best.name}-{steps}"].scores[metric], lab.jobs
        )
        for steps in config.at
        if f"{LEARNED}-{steps}" in drawn
    }
    return Findings(
        _sentence(ours, title_of(metric)),
        (Table("steps", "Scores are better when higher; differences are paired by picture.", head, rows),),
        {"steps.png": lines(curves, config.at, ("steps", title_of(metric)), main="AFA ensemble")},
        {"captions drawn": len(lab.jobs)},
    )


def _names(system: System, best: Measured, steps: int, most: int) -> tuple[str, str, str]:
    """A system at some steps, the best expert at these, and itself at the most."""
    return f"{system.name}-{steps}", f"{best.name}-{steps}", f"{system.name}-{most}"


def _sentence(ours: Mapping[int, Interval], score: str) -> str:
    if not ours:
        return f"The systems asked for do not include {LEARNED!r}."
    fewest = min(ours)
    outcomes = tally({str(steps): gap for steps, gap in ours.items()}, lower_is_better=False)
    return (
        f"In {score.lower()} against the best expert at the same steps, the ensemble is, over {len(ours)} numbers of "
        f"steps: {outcomes}. At {fewest} steps it is {verdict(ours[fewest], lower_is_better=False)}."
    )
