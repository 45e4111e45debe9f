"""More experts, fewer steps: does another expert help, and does a lead hold when there is less time to draw?"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from diffusemble.evaluation.statistics import Interval
from diffusemble.evaluation.studies.compare import best_expert, loss_gaps, score_cells, score_head, tally, title_of
from diffusemble.evaluation.studies.config import ExpertsConfig
from diffusemble.evaluation.studies.findings import Findings
from diffusemble.evaluation.studies.lab import Lab
from diffusemble.evaluation.studies.plots import lines
from diffusemble.evaluation.systems import LEARNED, System, build_systems, select
from diffusemble.evaluation.tables import Cell, Table

LOSS_HEAD = ("experts", "system", "loss ×1000", "difference")


@dataclass
class Tables:
    """What the loop over the sets of experts fills."""

    losses: list[list[Cell]] = field(default_factory=list)
    scores: list[list[Cell]] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)
    alone: dict[str, list[float]] = field(default_factory=dict)
    ours: dict[str, Interval] = field(default_factory=dict)


def run(config: ExpertsConfig, lab: Lab) -> Findings:
    """Held-out loss for every number of experts; scores for every number of experts and of steps."""
    found = Tables()
    for number, source in enumerate(config.ensembles):
        span = number / len(config.ensembles), (number + 1) / len(config.ensembles)
        _measure(source, config, lab, found, span)
    metric = title_of(config.metrics[0])
    head = ("experts", "system", "steps", *score_head(config.metrics, ["the best expert"]))
    alone = "the best expert alone, at the same steps"
    tables = (
        Table(
            "loss", "Held-out loss; differences are paired, to the best expert of each set.", LOSS_HEAD, found.losses
        ),
        Table("scores", f"Scores of drawn pictures; differences are paired, to {alone}.", head, found.scores),
    )
    losses = [f"{row[2]:.2f} with {row[0]}" for row in found.losses if row[1] == "AFA ensemble"]
    return Findings(
        f"The ensemble's held-out loss is {', '.join(losses)} experts. In {metric.lower()} against {alone}, over all "
        f"numbers of experts and of steps: {tally(found.ours, lower_is_better=False)}.",
        tables,
        {"steps.png": lines(found.curves, config.at, ("steps", metric), dashed=found.alone)},
        {"held-out pictures": len(lab.rows), "captions drawn": len(lab.jobs)},
    )


def at_steps(system: System, steps: int) -> System:
    """The same way to draw, with another number of steps."""
    settings = {**system.settings, "num_inference_steps": steps}
    return replace(system, name=f"{system.name}-{steps}", title=f"{system.title}, {steps} steps", settings=settings)


def _measure(source: str, config: ExpertsConfig, lab: Lab, into: Tables, span: tuple[float, float]) -> None:
    systems = build_systems(lab.load(source), guidance=config.guidance)
    experts = [system for system in systems if system.kind == "expert"]
    compared = select(systems, (LEARNED, *config.systems))
    middle = span[0] + 0.1 * (span[1] - span[0])
    measured = lab.measure((*experts, *compared), draw=False, span=(span[0], middle))
    best, n = best_expert(measured), len(experts)
    gaps = loss_gaps(measured, best, lab)
    rows = (*select(systems, (best.name,)), *compared)
    into.losses += [[n, s.title, measured[s.name].loss, gaps.get(s.name)] for s in rows]
    drawn = lab.measure([at_steps(s, steps) for s in rows for steps in config.at], loss=False, span=(middle, span[1]))
    metric = config.metrics[0]
    for system in rows:
        for steps in config.at:
            own, alone = drawn[f"{system.name}-{steps}"], drawn[f"{best.name}-{steps}"]
            into.scores.append([n, system.title, steps, *score_cells(own, [alone], lab)])
            if system.name == LEARNED:
                into.ours[f"{n} at {steps}"] = lab.gap(own.scores[metric], alone.scores[metric], lab.jobs)
                into.curves.setdefault(f"{n} experts", []).append(float(own.scores[metric].mean()))
                into.alone.setdefault(f"best of {n} alone", []).append(float(alone.scores[metric].mean()))
