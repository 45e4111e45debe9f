"""The page of the protocol ``scenes``: every measure of every system, and differences paired by scene."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from diffusemble.evaluation.page import Section, plain
from diffusemble.evaluation.scenes.bench import SceneScores, gap
from diffusemble.evaluation.scenes.config import ScenesConfig
from diffusemble.evaluation.tables import Body, Column, Head, Table

MEASURES: Mapping[str, str] = {
    "scene": "relation, every thing in its colour, and style, all right",
    "relation": "the first two things stand as asked",
    "attributes": "every thing is there in its colour",
    "style": "the style of the reference",
    "instance": "share of things that are there, in their colour, in their box (IoU 0.5)",
    "thing": "share of things that are there",
    "colour": "share of things that are there in their colour",
    "iou": "mean overlap of things with their boxes",
    "filled": "the same, whatever stands in them",
}
COMPARED = ("scene", "relation", "attributes", "style", "instance")


def sections(found: Mapping[str, SceneScores], config: ScenesConfig) -> Iterable[Section]:
    """The page from top to bottom."""
    reference = found[config.compared]
    count = len(next(iter(reference.measures.values())))
    yield "# Scenes"
    yield (
        f"Written by `diffusemble evaluate --protocol scenes`: {count} held-out scenes of the zoo, one picture each, "
        f"{config.steps} steps of {config.scheduler}, guidance {config.guidance:g}, judged by ink and a probe, without "
        f"a detector. All numbers are per cent. Intervals are 95 %, paired by scene, over {config.bootstrap:,} "
        f"bootstrap samples; bold ones are clear of zero."
    )
    yield verdict(found, config)
    yield "## Measures"
    yield score_table(found)
    yield "\n".join(f"- *{name}*: {words}" for name, words in MEASURES.items())
    yield f"## Against {reference.title}"
    yield f"Difference of {reference.title} to each of the others; above zero {reference.title} is better."
    yield gap_table(found, config)


def verdict(found: Mapping[str, SceneScores], config: ScenesConfig) -> str:
    """Whether whole scenes come out right more often with the reference than with any single member."""
    own = found[config.compared]
    single = {system.name for system in config.systems if len(system.members) == 1} & set(found)
    if not single or config.compared in single:
        return f"**In short:** {own.title}: {100 * own.mean('scene'):.1f} % of the scenes come out right."
    best = max(single, key=lambda name: found[name].mean("scene"))
    difference = gap(own, found[best], "scene", config)
    outcome = ("better" if difference.value > 0 else "worse") if difference.clear else "no clear difference"
    return (
        f"**In short:** {own.title}: {100 * own.mean('scene'):.1f} % of the scenes come out right, against "
        f"{100 * found[best].mean('scene'):.1f} % of the best single member ({found[best].title}): "
        f"{plain(difference, 100, 1)} points, {outcome}."
    )


def score_table(found: Mapping[str, SceneScores]) -> Table:
    """Every measure of every system, denoiser calls and seconds for one picture."""
    head: Head = [
        "system",
        *(Column(name, 100, 1) for name in MEASURES),
        Column("calls", 1, 0),
        Column("seconds", 1, 2),
    ]
    body: Body = [
        [scores.title, *(scores.mean(name) for name in MEASURES), scores.calls, scores.seconds]
        for scores in found.values()
    ]
    return Table("scenes", "Held-out scenes: all measures, per cent", head, body)


def gap_table(found: Mapping[str, SceneScores], config: ScenesConfig) -> Table:
    """The reference against each of the others."""
    reference = found[config.compared]
    head: Head = ["against", *(Column(name, 100, 1) for name in COMPARED)]
    body: Body = [
        [scores.title, *(gap(reference, scores, name, config) for name in COMPARED)]
        for name, scores in found.items()
        if name != config.compared
    ]
    return Table("scenes-versus", f"{reference.title} against each of the others, points", head, body)
