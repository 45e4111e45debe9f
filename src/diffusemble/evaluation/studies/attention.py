"""Whom the aggregator listens to: weights over time, depth and kinds of prompt, and over drawn pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from diffusemble.config.generate import AttentionConfig as MapConfig
from diffusemble.config.generate import GenerateConfig
from diffusemble.drawing import choose_maps, draw
from diffusemble.evaluation.routing import expert_weights
from diffusemble.evaluation.studies.config import AttentionConfig
from diffusemble.evaluation.studies.digest import digest_of
from diffusemble.evaluation.studies.findings import Findings, joined
from diffusemble.evaluation.studies.lab import Array, Lab
from diffusemble.evaluation.studies.plots import heat, lines
from diffusemble.evaluation.systems import LEARNED, System
from diffusemble.evaluation.tables import Cell, Table
from diffusemble.pictures.attention import attention_picture


def run(config: AttentionConfig, lab: Lab) -> Findings:
    """Mean weights ``[n t k e]`` of held-out pictures, cut in several ways."""
    ensemble = lab.ensemble
    weights = measure(lab)
    names = [expert.name for expert in ensemble.experts]
    points = [name for index, name in enumerate(ensemble.points) if index in ensemble.aggregator.points]
    over_time, over_depth = weights.mean(axis=(0, 2)), weights.mean(axis=(0, 1))
    tables = (
        _table("kinds", "by kind of prompt", names, _by_kind(lab, weights)),
        _table("times", "by timestep", names, [(f"t = {t}", over_time[at]) for at, t in enumerate(config.times)]),
        _table("points", "by point", names, [(point, over_depth[at]) for at, point in enumerate(points)]),
    )
    figures = {
        "over-time-and-depth.png": heat(
            {name: weights[..., at].mean(axis=0).T for at, name in enumerate(names)},
            ("timestep", "point, first to last"),
            (float(weights.mean(axis=0).min()), float(weights.mean(axis=0).max())),
            config.times,
        ),
        "over-time.png": lines(
            {name: list(map(float, over_time[:, at])) for at, name in enumerate(names)},
            config.times,
            ("timestep (1000 is pure noise)", "mean weight"),
        ),
        **_pictures(config, lab),
    }
    return Findings(_sentence(names, weights, over_time), tables, figures, {"held-out pictures": len(lab.rows)})


def measure(lab: Lab) -> Array:
    """Weights ``[n t k e]``: pictures, timesteps, aggregated points, experts; kept."""
    config, ensemble = lab.config, lab.ensemble
    system = System(LEARNED, "AFA ensemble", "ensemble", ensemble.pipeline())
    held = lab.held(system)
    parts = []
    for part in lab.parts(len(held)):
        lab.tell(0.7 * part.start / len(held), "weights")

        def make(part: slice = part) -> dict[str, Array]:
            found = expert_weights(ensemble, system.predict, held[part], system.diffusion, config.times, config.seed)
            return {"weights": found.numpy().astype(np.float32)}

        mark = [digest_of(system.pipeline.unet), list(config.times), config.seed, held.keys[part]]
        parts.append(lab.keep("weights/ensemble", mark, make)["weights"])
    return np.concatenate(parts)


def _by_kind(lab: Lab, weights: Array) -> Iterator[tuple[str, Array]]:
    for column in ("topic", "style"):
        values = np.array([getattr(row, column) for row in lab.rows])
        for value in sorted(set(values.tolist())):
            yield f"{column} {value}", weights[values == value].mean(axis=(0, 1, 2))


def _table(name: str, how: str, names: Sequence[str], parts: Any) -> Table:
    rows: list[list[Cell]] = [[label, *map(float, values)] for label, values in parts]
    head = ["", *(f"weight of *{expert}*" for expert in names)]
    return Table(name, f"Mean weight of every expert {how}.", head, rows, digits=3)


def _pictures(config: AttentionConfig, lab: Lab) -> dict[str, Any]:
    """One drawing with its maps for every prompt."""
    lab.tell(0.7, "drawing")
    run = GenerateConfig(
        prompts=config.prompts,
        ensemble=config.ensemble,
        steps=config.steps,
        guidance=config.guidance,
        scheduler=config.scheduler,
        seeds=(config.seed,),
        attention=MapConfig(),
    )
    with torch.no_grad():
        drawn = draw(lab.ensemble, run, choose_maps(lab.ensemble, run))
    names = [expert.name for expert in lab.ensemble.experts]
    return {
        f"maps-{number}.webp": attention_picture(one.image, names, one.maps, one.prompt)
        for number, one in enumerate(drawn, start=1)
    }


def _sentence(names: Sequence[str], weights: Array, over_time: Array) -> str:
    means = weights.mean(axis=(0, 1, 2))
    shares = joined([f"{name} {mean:.2f}" for name, mean in zip(names, means, strict=True)])
    moving = int(np.ptp(over_time, axis=0).argmax())
    low, high = over_time[:, moving].min(), over_time[:, moving].max()
    top = weights.max(axis=3).mean()
    return (
        f"Mean weights are {shares} (equal shares would be {1 / len(names):.2f}). Over time {names[moving]} moves "
        f"most, between {low:.2f} and {high:.2f}; the heaviest expert of a point has {top:.2f} on average."
    )
