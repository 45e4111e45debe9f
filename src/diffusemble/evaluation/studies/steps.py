"""Fewer steps: how every way to combine the experts holds up when there is less time to draw."""

from __future__ import annotations

from diffusemble.evaluation.config import BenchConfig
from diffusemble.evaluation.specs import choose_systems
from diffusemble.evaluation.statistics import Interval
from diffusemble.evaluation.studies.compare import best_expert, tally, title_of
from diffusemble.evaluation.studies.config import StepsConfig
from diffusemble.evaluation.studies.experts import at_steps
from diffusemble.evaluation.studies.findings import Findings, verdict
from diffusemble.evaluation.studies.lab import Lab
from diffusemble.evaluation.studies.plots import lines
from diffusemble.evaluation.systems import LEARNED, build_systems, select
from diffusemble.evaluation.tables import Cell, Table


def run(config: StepsConfig, lab: Lab) -> Findings:
    """Scores of each system at each number of steps, against the best expert and against itself."""
    systems = build_systems(lab.ensemble, guidance=config.guidance)
    experts = [system for system in systems if system.kind == "expert"]
    best = best_expert(lab.measure(experts, draw=False, span=(0, 0.1)))
    asked = BenchConfig(ensemble=config.ensemble, systems=config.systems, guidance=config.guidance)
    compared = (*select(systems, (best.name,)), *choose_systems(asked, lab.ensemble).systems)
    drawn = lab.measure([at_steps(s, steps) for s in compared for steps in config.at], loss=False, span=(0.1, 1))
    rows: list[list[Cell]] = []
    curves: dict[str, list[float]] = {}
    ours: dict[int, Interval] = {}
    most, fewest = max(config.at), min(config.at)
    for system in compared:
        for steps in config.at:
            row: list[Cell] = [system.title, steps]
            for metric in config.metrics:
                own = drawn[f"{system.name}-{steps}"].scores[metric]
                alone = lab.gap(own, drawn[f"{best.name}-{steps}"].scores[metric], lab.jobs)
                itself = lab.gap(own, drawn[f"{system.name}-{most}"].scores[metric], lab.jobs)
                row += [
                    float(own.mean()),
                    None if system.name == best.name else alone,
                    None if steps == most else itself,
                ]
                if metric == config.metrics[0]:
                    curves.setdefault(system.title.replace("*", ""), []).append(float(own.mean()))
                    ours |= {steps: alone} if system.name == LEARNED else {}
            rows.append(row)
    head = ["system", "steps"]
    for metric in config.metrics:
        head += [title_of(metric), f"difference in {metric} to the best expert", f"to itself at {most} steps"]
    first = title_of(config.metrics[0])
    sentence = f"The systems asked for do not include {LEARNED!r}."
    if ours:
        sentence = (
            f"In {first.lower()} against the best expert at the same steps, the ensemble is, over {len(ours)} numbers "
            f"of steps: {tally({str(k): gap for k, gap in ours.items()}, lower_is_better=False)}. At {fewest} steps it "
            f"is {verdict(ours[fewest], lower_is_better=False)}."
        )
    table = Table("steps", "Scores are better when higher; differences are paired by picture.", head, rows)
    figure = lines(curves, config.at, ("steps", first), main="AFA ensemble")
    return Findings(sentence, (table,), {"steps.png": figure}, {"captions drawn": len(lab.jobs)})
