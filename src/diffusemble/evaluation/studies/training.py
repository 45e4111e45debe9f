"""Other ways to train the same aggregator: longer, with terms on its maps, another error, less data, pooled tokens."""

from __future__ import annotations

from pathlib import Path

from diffusemble.evaluation.studies.compare import best_expert, comparison, gap_figure, loss_gaps, said
from diffusemble.evaluation.studies.config import TrainedConfig
from diffusemble.evaluation.studies.findings import Findings, in_words, joined, verdict
from diffusemble.evaluation.studies.lab import Lab
from diffusemble.evaluation.studies.trained import Variant, as_systems, train_variants
from diffusemble.evaluation.systems import build_systems, select
from diffusemble.settings import load_config
from diffusemble.training.config import TrainConfig

RECIPE = "recipe"
LONGER = 3  # times the steps of the others
TERM = 0.01  # weight of a term on the maps, about a tenth of the zoo's loss
AVERAGES = ("block-average", "noise-average")


def run(config: TrainedConfig, lab: Lab) -> Findings:
    """Each change against the recipe as it is, by held-out loss and scores."""
    variants = variants_of(config)
    ensembles = train_variants(variants, lab, needed=RECIPE)
    systems = build_systems(lab.ensemble, guidance=config.guidance)
    experts = tuple(system for system in systems if system.kind == "expert")
    measured = lab.measure((*as_systems(ensembles, variants), *select(systems, AVERAGES), *experts), span=(0.8, 1))
    recipe = measured[RECIPE]
    gaps = loss_gaps(measured, recipe, lab)
    told = {
        outcome: [
            f"{variants[name].title} {in_words(gap)}"
            for name, gap in gaps.items()
            if name in ensembles and verdict(gap, lower_is_better=True) == outcome
        ]
        for outcome in ("better", "worse", "not clearly different")
    }
    parts = [f"{what}: {joined(names)}" for what, names in told.items() if names]
    return Findings(
        f"{said(recipe, best_expert(measured), lab)} Changes of the training, by the held-out loss ×1000 against it; "
        f"{'; '.join(parts)}.",
        (comparison(measured, recipe, lab),),
        {"training.png": gap_figure(measured, gaps, "held-out loss ×1000 above the recipe's")},
        {"held-out pictures": len(lab.rows), "captions drawn": len(lab.jobs)},
    )


def variants_of(config: TrainedConfig) -> dict[str, Variant]:
    """All changes; with several sets of pictures in the recipe, each of them left out as well."""
    known = {
        RECIPE: Variant("the recipe"),
        "longer": Variant(f"{LONGER} × the steps", {"steps": LONGER * config.train_steps}),
        "entropy": Variant("entropy term", {"objective.entropy": TERM}),
        "pull": Variant("pull to the mean", {"objective.pull": TERM}),
        "balance": Variant("balance term", {"objective.balance": TERM}),
        "min-snr": Variant("min-SNR error", {"objective.error": "min-snr"}),
        "pooled": Variant("pooled tokens", {"aggregator.options.pool": 2, "aggregator.options.pool_from": 4}),
    }
    sets = load_config(TrainConfig, config.recipe).data
    for place, left_out in enumerate(sets if len(sets) > 1 else ()):
        rest = [one.model_dump(mode="json") for number, one in enumerate(sets) if number != place]
        known[f"without-{place + 1}"] = Variant(f"without {Path(left_out.path).stem}", {"data": rest})
    return known
