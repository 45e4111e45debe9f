"""Ablations (AFA, table 3): what each part of the aggregator is worth. Every row is one option."""

from __future__ import annotations

from diffusemble.evaluation.studies.compare import best_expert, comparison, gap_figure, loss_gaps, said, tally
from diffusemble.evaluation.studies.config import TrainedConfig
from diffusemble.evaluation.studies.findings import Findings
from diffusemble.evaluation.studies.lab import Lab
from diffusemble.evaluation.studies.trained import Variant, as_systems, train_variants
from diffusemble.evaluation.systems import build_systems, select

FULL = "full"
VARIANTS = {
    FULL: Variant("SABW"),
    "last": Variant("only the last block", {"aggregator.options.points": "last"}),
    "no-space": Variant("without spatial maps", {"aggregator.options.spatial": False}),
    "no-time": Variant("without timestep", {"aggregator.options.time": False}),
    "no-text": Variant("without text", {"aggregator.options.text": False}),
}
AVERAGES = ("block-average", "noise-average")


def run(config: TrainedConfig, lab: Lab) -> Findings:
    """Each ablation and the untrained averages against the whole aggregator, all trained alike."""
    ensembles = train_variants(VARIANTS, lab, needed=FULL)
    systems = build_systems(lab.ensemble, guidance=config.guidance)
    experts = tuple(system for system in systems if system.kind == "expert")
    compared = (*as_systems(ensembles, VARIANTS), *select(systems, AVERAGES), *experts)
    measured = lab.measure(compared, span=(0.8, 1))
    full = measured[FULL]
    gaps = loss_gaps(measured, full, lab)
    reduced = {name: gaps[name] for name in ensembles if name != FULL}
    best = best_expert(measured)
    return Findings(
        f"{said(full, best, lab)} Taking one part away, against the whole "
        f"aggregator: {tally(reduced, lower_is_better=True)}; its untrained averages: "
        f"{tally({name: gaps[name] for name in AVERAGES}, lower_is_better=True)}.",
        (comparison(measured, full, lab),),
        {"ablations.png": gap_figure(measured, gaps, "held-out loss ×1000 above the whole aggregator's")},
        {"held-out pictures": len(lab.rows), "captions drawn": len(lab.jobs)},
    )
