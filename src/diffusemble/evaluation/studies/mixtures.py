"""Mixtures of experts: only one expert runs, per step or per block, against all of them with SABW."""

from __future__ import annotations

from diffusemble.description import describe
from diffusemble.ensembles.block_level import EnsembleDenoiser, build_aggregator
from diffusemble.evaluation.studies.compare import best_expert, comparison, loss_gaps, said
from diffusemble.evaluation.studies.config import TrainedConfig
from diffusemble.evaluation.studies.findings import Findings, in_words, joined
from diffusemble.evaluation.studies.lab import Lab
from diffusemble.evaluation.studies.plots import scatter
from diffusemble.evaluation.studies.trained import Variant, as_systems, train_variants
from diffusemble.evaluation.systems import System, build_systems

FULL, SWITCH = "full", "timestep-switch"
VARIANTS = {
    FULL: Variant("SABW, all experts run"),
    "denoisers": Variant("mixture, one expert for each step", {"aggregator.name": "mixture-denoisers"}),
    "blocks": Variant("mixture, one expert for each block", {"aggregator.name": "mixture-blocks"}),
}


def run(config: TrainedConfig, lab: Lab) -> Findings:
    """Loss, scores and operations of each."""
    ensembles = train_variants(VARIANTS, lab, needed=FULL)
    experts = lab.ensemble.experts
    switch = build_aggregator(SWITCH, [expert.denoiser for expert in experts])
    together = {**ensembles, SWITCH: EnsembleDenoiser(experts, switch.to(lab.ensemble.device)).eval()}
    systems = (
        *as_systems(ensembles, VARIANTS),
        System(SWITCH, "timestep switch", "control", together[SWITCH].pipeline()),
        *(system for system in build_systems(lab.ensemble, guidance=config.guidance) if system.kind == "expert"),
    )
    measured = lab.measure(systems, span=(0.8, 1))
    flops = dict.fromkeys(measured, describe(lab.ensemble).expert_flops / 1e9)
    flops |= {name: describe(ensemble).ensemble_flops / 1e9 for name, ensemble in together.items()}
    full, best = measured[FULL], best_expert(measured)
    gaps = loss_gaps(measured, full, lab)
    others = [
        f"{one.title} {in_words(gaps[name])}" for name, one in measured.items() if name in together and name != FULL
    ]
    dots = {one.title: (flops[name], one.loss) for name, one in measured.items()}
    return Findings(
        f"{said(full, best, lab)} Differences of the held-out loss ×1000 to it: {joined(others)}.",
        (comparison(measured, full, lab, {"GFLOP of a step": dict(flops)}),),
        {"mixtures.png": scatter(dots, ("GFLOP of a step", "held-out loss ×1000"))},
        {"held-out pictures": len(lab.rows), "captions drawn": len(lab.jobs)},
    )
