"""Gains by kind of prompt, and where the ensemble loses: the captions with the largest gain and the largest loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from diffusemble.evaluation.pictures import Row, read_images, to_bytes
from diffusemble.evaluation.statistics import Interval, paired_bootstrap
from diffusemble.evaluation.studies.compare import best_expert, comparison, title_of
from diffusemble.evaluation.studies.config import PromptsConfig
from diffusemble.evaluation.studies.findings import Findings, joined, scaled
from diffusemble.evaluation.studies.lab import Array, Lab, Measured
from diffusemble.evaluation.studies.plots import whiskers
from diffusemble.evaluation.systems import LEARNED, build_systems, select
from diffusemble.evaluation.tables import Cell, Table
from diffusemble.pictures.sheet import Column, contact_sheet
from diffusemble.pictures.text import COLOURS, FAINT, INK

AVERAGE = "block-average"
FEWEST = 5  # concepts of a kind of prompt


def run(config: PromptsConfig, lab: Lab) -> Findings:
    """The ensemble against the best expert and the block average, kind by kind and caption by caption."""
    systems = build_systems(lab.ensemble, guidance=config.guidance)
    experts = tuple(system for system in systems if system.kind == "expert")
    measured = lab.measure((*experts, *select(systems, (AVERAGE, LEARNED))))
    best, ours = best_expert(measured), measured[LEARNED]
    others = (best, measured[AVERAGE])
    kinds = dict(_kinds(lab.rows))
    gaps = {other.name: _gaps(ours, other, kinds, lab) for other in others}
    rows: list[list[Cell]] = [
        [label, int(own.sum()), *(gaps[other.name][label] for other in others)] for label, own in kinds.items()
    ]
    head = ("kind of prompt", "pictures", *(f"loss ×1000, to {other.title}" for other in others))
    by_kind = Table("kinds", "Difference of the ensemble's held-out loss; below zero it is better.", head, rows)
    against_best = gaps[best.name]
    return Findings(
        _sentence(against_best, best),
        (by_kind, *_captions(ours, best, lab, config), comparison(measured, best, lab)),
        {
            "kinds.png": whiskers(
                {label: (gap.value, gap.low, gap.high) for label, gap in against_best.items()},
                f"held-out loss ×1000 against {best.title.replace('*', '')}",
            ),
            "captions.webp": _sheet(ours, others, lab, config),
        },
        {"held-out pictures": len(lab.rows), "captions drawn": len(lab.jobs)},
    )


def _kinds(rows: Sequence[Row]) -> Iterator[tuple[str, Array]]:
    yield "all", np.ones(len(rows), dtype=bool)
    for column in ("topic", "style"):
        values = np.array([getattr(row, column) for row in rows])
        for value in sorted(set(values.tolist())):
            own = values == value
            # Fewer concepts give no interval: the bootstrap of a single one has no width.
            if len({row.concept for row, chosen in zip(rows, own, strict=True) if chosen}) >= FEWEST:
                yield f"{column} {value}", own


def _gaps(ours: Measured, other: Measured, kinds: Mapping[str, Array], lab: Lab) -> dict[str, Interval]:
    differences = (ours.losses - other.losses).mean(axis=1)
    concepts = np.array([row.concept for row in lab.rows])
    settings = lab.config.bootstrap, lab.config.seed
    return {
        label: scaled(paired_bootstrap(differences[own], concepts[own].tolist(), *settings), 1000)
        for label, own in kinds.items()
    }


def _captions(ours: Measured, best: Measured, lab: Lab, config: PromptsConfig) -> tuple[Table, ...]:
    """Captions sorted by the gain in loss and by the gain in the first score: the best and the worst of each."""
    metric = config.metrics[0]
    loss = 1000 * (ours.losses - best.losses).mean(axis=1)
    score = ours.scores[metric] - best.scores[metric]
    return (
        _ends("by-loss", "in held-out loss ×1000 (below zero the ensemble is better)", loss, lab.rows, config.show),
        _ends(
            "by-score", f"in {title_of(metric).lower()} (above zero it is better)", -score, lab.jobs, config.show, -1
        ),
    )


def _ends(name: str, what: str, order: Array, rows: Sequence[Row], show: int, sign: int = 1) -> Table:
    places = _places(order, show)
    body: list[list[Cell]] = [[rows[at].text, float(sign * order[at])] for at in places]
    caption = f"Captions with the largest gain and the largest loss {what}, against the best expert."
    return Table(name, caption, ("caption", "difference"), body)


def _places(order: Array, show: int) -> list[int]:
    ranked = np.argsort(order, kind="stable").tolist()
    return [*ranked[:show], *ranked[len(ranked) - min(show, len(ranked) - min(show, len(ranked))) :]]


def _sheet(ours: Measured, others: Sequence[Measured], lab: Lab, config: PromptsConfig) -> Image.Image:
    """Pictures of the captions with the largest gain and the largest loss in the first score."""
    metric, best = config.metrics[0], others[0]
    gain = ours.scores[metric] - best.scores[metric]
    places = _places(-gain, config.show)
    real = to_bytes(read_images(lab.folder, [lab.jobs[at] for at in places]))
    columns = [Column("held out", FAINT, [Image.fromarray(one) for one in real])]
    for number, one in enumerate((*others, ours)):
        pictures = [Image.fromarray(one.images[at]) for at in places]
        columns.append(
            Column(one.name.replace("-", " "), INK if one is ours else COLOURS[number], pictures, one is ours)
        )
    sheet = contact_sheet([f"{lab.jobs[at].text} ({gain[at]:+.1f})" for at in places], columns)
    return sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS)


def _sentence(gaps: Mapping[str, Interval], best: Measured) -> str:
    kinds = {label: gap for label, gap in gaps.items() if label != "all"}
    better = [label for label, gap in kinds.items() if gap.clear and gap.value < 0]
    worse = [label for label, gap in kinds.items() if gap.clear and gap.value > 0]
    return (
        f"Against {best.title} the ensemble's held-out loss is clearly lower on {len(better)} of {len(kinds)} kinds of "
        f"prompts ({joined(better)}) and clearly higher on {len(worse)} ({joined(worse)})."
    )
