"""One command from the published prompts to COCO-MIG's table."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusemble.drawing import placement
from diffusemble.evaluation.coco_mig.bench import MigPrompt, read_bench
from diffusemble.evaluation.coco_mig.detectors import LocalDetectors
from diffusemble.evaluation.coco_mig.measures import Detectors, measures
from diffusemble.evaluation.page import Section, write_page
from diffusemble.evaluation.pictures import to_bytes
from diffusemble.evaluation.scenes.bench import SceneScores, Tell, gap, measure_systems
from diffusemble.evaluation.scenes.config import CocoMigConfig
from diffusemble.evaluation.scenes.kept import kept_scores, long_table, open_store
from diffusemble.evaluation.scenes.systems import SceneSystem
from diffusemble.evaluation.tables import Body, Column, Head, Table
from diffusemble.scene.config import InstanceConfig, SceneConfig


def evaluate_coco_mig(
    config: CocoMigConfig, tell: Tell = lambda share, what: None, detectors: Detectors | None = None
) -> dict[str, SceneScores]:
    """Draw every prompt with every system, find the things, keep the scores, write the page.

    Args:
        config: see ``CocoMigConfig``. What ``config.out`` already holds is neither drawn nor judged again.
        tell: told how far it is, 0 to 1, and what is being done.
        detectors: instead of the published ones.

    Returns:
        Scores by the systems' names.

    Raises:
        ValueError: prompts or systems that cannot be read, or a folder with another run's scores.
        FileNotFoundError: the detectors' weights are missing.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    prompts = read_bench(config.prompts, config.count)
    tell(0.0, "loading")
    finders = detectors or LocalDetectors.load(
        Path(config.weights) if config.weights else None, placement(config.device, config.dtype)[0]
    )
    store = open_store(config, _identity(config))

    def judged(image: Tensor, number: int) -> Mapping[str, float]:
        return measures(to_bytes(image[None])[0], prompts[number], finders)

    found = measure_systems(
        config, lambda system: [as_config(prompt, system, config) for prompt in prompts], judged, store, tell
    )
    write_coco_mig(found, config)
    tell(1.0, f"written: {config.report}")
    return found


def redraw_coco_mig(config: CocoMigConfig, names: Sequence[str] = ()) -> Path:
    """Write the page again from the scores in ``config.out``; no model is loaded.

    Raises:
        ValueError: there are none of a system, or none of the reference.
    """
    return write_coco_mig(kept_scores(config, names), config)


def as_config(prompt: MigPrompt, system: SceneSystem, config: CocoMigConfig) -> SceneConfig:
    """A prompt as a scene to draw; the colours stand in the phrases."""
    return SceneConfig(
        prompt=prompt.caption,
        negative=config.negative,
        base=config.base,
        instances=tuple(
            InstanceConfig(name=f"{number} {thing.label}", phrase=thing.label, box=thing.box)
            for number, thing in enumerate(prompt.instances)
        ),
        members=system.members,
        combine=system.combine,
        shared_noise=system.shared_noise,
        height=config.size,
        width=config.size,
        **config.model_dump(include={"steps", "guidance", "scheduler", "device", "dtype"}),
    )


def write_coco_mig(found: Mapping[str, SceneScores], config: CocoMigConfig) -> Path:
    """Write ``config.report`` with its tables, and all scores as Parquet beside what is kept; returns the page."""
    prompts = read_bench(config.prompts, config.count)
    told = [{"prompt": one.key, "caption": one.caption, "level": one.level} for one in prompts]
    long_table(found, told).write(Path(config.out))
    return write_page(Path(config.report), sections(found, prompts, config))


def sections(
    found: Mapping[str, SceneScores], prompts: Sequence[MigPrompt], config: CocoMigConfig
) -> Iterable[Section]:
    """The page from top to bottom."""
    reference = found[config.compared]
    yield "# COCO-MIG"
    yield (
        f"Written by `diffusemble evaluate --protocol coco-mig`: {len(prompts)} prompts, one picture each, "
        f"{config.steps} steps of {config.scheduler}, guidance {config.guidance:g}, {config.size} pixels. L2 to L6 are "
        f"prompts with two to six things; averages are over things. Numbers are per cent. Intervals are 95 %, paired "
        f"by prompt, against {reference.title}; above zero the system is better."
    )
    for measure, title in (("instance", "Instance success"), ("miou", "Mean IoU, as published")):
        yield f"## {title}"
        yield level_table(found, prompts, measure, title, config)
    yield "## Whole pictures"
    yield "Share of pictures in which every thing succeeds."
    yield level_table(found, prompts, "picture", "Whole pictures", config)


def level_table(
    found: Mapping[str, SceneScores], prompts: Sequence[MigPrompt], measure: str, title: str, config: CocoMigConfig
) -> Table:
    """One measure by number of things."""
    levels = np.array([prompt.level for prompt in prompts])
    weights = np.ones(len(levels)) if measure == "picture" else levels.astype(float)
    reference = found[config.compared]
    head: Head = [
        "system",
        *(Column(f"L{level}", 100, 1) for level in sorted(set(levels.tolist()))),
        Column("average", 100, 1),
        Column("difference", 100, 1),
    ]
    body: Body = [
        [
            scores.title,
            *(float(scores.measures[measure][levels == level].mean()) for level in sorted(set(levels.tolist()))),
            scores.mean(measure, weights),
            None if name == config.compared else gap(scores, reference, measure, config),
        ]
        for name, scores in found.items()
    ]
    return Table(f"coco-mig-{measure}", f"COCO-MIG: {title}, per cent", head, body)


def _identity(config: CocoMigConfig) -> dict[str, Any]:
    kept = {"base", "count", "steps", "guidance", "scheduler", "batch", "seed", "negative", "size"}
    mark = hashlib.sha256(Path(config.prompts).read_bytes()).hexdigest()[:16]
    return {**config.model_dump(mode="json", include=kept), "prompts": mark}
