"""The page of the protocol ``scenes``: every measure of every system, and differences paired by scene."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from diffusemble.evaluation.benchmark import processor
from diffusemble.evaluation.page import Section, plain
from diffusemble.evaluation.scenes.bench import SceneScores, gap
from diffusemble.evaluation.scenes.config import ScenesConfig
from diffusemble.evaluation.scenes.systems import SceneSystem
from diffusemble.evaluation.tables import Body, Column, Head, Table
from diffusemble.provenance import versions

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
    yield f"# Scenes: {config.vary}" if config.vary else "# Scenes"
    yield (
        f"Written by `{command(config)}`: {count} held-out scenes of the zoo, one picture each, "
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


def settings_of(config: ScenesConfig) -> Iterable[Section]:
    """Machine, versions, settings and systems, at the end of the page."""
    hidden = {"systems", "only", "out", "report", "threads", "device", "protocol"}
    settings = config.model_dump(mode="json", exclude=hidden)
    yield "## Settings"
    yield "\n".join(
        (
            f"- versions: {', '.join(f'{name} {number}' for name, number in versions().items())}",
            f"- processor: {processor()}, {config.threads or 'all'} threads",
            f"- settings: {', '.join(f'{key} {value}' for key, value in settings.items() if value not in (None, ''))}",
            *(f"- {system.title or system.name}: {_plainly(system)}" for system in config.measured),
        )
    )


def command(config: ScenesConfig) -> str:
    """The command of the page, with what differs from the defaults."""
    usual = ScenesConfig()
    keys = ("vary", "kinds", "only", "base", "count", "steps", "guidance", "scheduler", "seed")
    changed = [f"{key}={_written(getattr(config, key))}" for key in keys if getattr(config, key) != getattr(usual, key)]
    return " ".join(("diffusemble evaluate --protocol scenes", *changed))


def _written(value: Any) -> str:
    return f"[{','.join(value)}]" if isinstance(value, tuple) else str(value)


def _plainly(system: SceneSystem) -> str:
    given = system.model_dump(mode="json", exclude_defaults=True, exclude={"name", "title"})
    return json.dumps(given, ensure_ascii=False)


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
