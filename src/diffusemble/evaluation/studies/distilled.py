"""Very few steps: distilled ensembles against the undistilled one and the best expert."""

from __future__ import annotations

from diffusemble.evaluation.studies.compare import best_expert, score_cells, score_head, title_of
from diffusemble.evaluation.studies.config import DistilledConfig
from diffusemble.evaluation.studies.experts import at_steps
from diffusemble.evaluation.studies.findings import Findings, in_words, joined
from diffusemble.evaluation.studies.lab import Lab
from diffusemble.evaluation.studies.plots import lines
from diffusemble.evaluation.systems import LEARNED, System, build_systems, select
from diffusemble.evaluation.tables import Cell, Table

CAPTION = "Scores are better when higher; differences are paired by picture."


def run(config: DistilledConfig, lab: Lab) -> Findings:
    """Scores at every number of steps, against the undistilled ensemble at the same steps and at the usual ones.

    Raises:
        ValueError: no distilled ensembles are given.
    """
    _refuse_none(config)
    systems = build_systems(lab.ensemble, guidance=config.guidance)
    experts = [system for system in systems if system.kind == "expert"]
    best = best_expert(lab.measure(experts, draw=False, span=(0, 0.1)))
    usual = select(systems, (best.name, LEARNED))
    drawn = lab.measure(
        [at_steps(s, n) for s in usual for n in dict.fromkeys((*config.at, config.steps))], loss=False, span=(0.1, 0.5)
    )
    settings = {"guidance_scale": config.few_guidance}
    few = [
        System(name, f"distilled: {name}", "ensemble", lab.load(source).pipeline(), settings)
        for name, source in config.folders.items()
    ]
    asked = [at_steps(system, n) for system in few for n in config.at]
    drawn |= lab.measure(asked, loss=False, span=(0.5, 1), scheduler=config.few)
    rows: list[list[Cell]] = []
    curves: dict[str, list[float]] = {}
    metric, fewest, told = config.metrics[0], min(config.at), []
    for system in (*usual, *few):
        for n in dict.fromkeys((*config.at, *([config.steps] if system in usual else []))):
            own, same, whole = (drawn[f"{name}-{m}"] for name, m in _compared(system, n, config))
            rows.append([system.title, n, *score_cells(own, [same, whole], lab)])
            if n in config.at:
                curves.setdefault(system.title.replace("*", ""), []).append(float(own.scores[metric].mean()))
            if system in few and n == fewest:
                told.append(f"{system.name} {in_words(lab.gap(own.scores[metric], same.scores[metric], lab.jobs))}")
    references = ["the ensemble at these steps", f"it at {config.steps}"]
    return Findings(
        f"At {fewest} step{'s' if fewest > 1 else ''}, differences in {title_of(metric).lower()} to the undistilled "
        f"ensemble: {joined(told)}.",
        (Table("distilled", CAPTION, ("system", "steps", *score_head(config.metrics, references)), rows),),
        {"distilled.png": lines(curves, config.at, ("steps", title_of(metric)))},
        {"captions drawn": len(lab.jobs)},
    )


def _compared(system: System, steps: int, config: DistilledConfig) -> tuple[tuple[str, int], ...]:
    """A system at some steps, the undistilled ensemble at these, and at the usual ones."""
    return (system.name, steps), (LEARNED, steps), (LEARNED, config.steps)


def _refuse_none(config: DistilledConfig) -> None:
    if not config.folders:
        raise ValueError(
            "This study compares distilled ensembles, and none are given. Distil one, and give its folder: "
            "folders.lcm=PATH, with as many more names as you like."
        )
