"""Aggregators that differ in one thing, trained alike; what is trained already is not trained again."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffusemble.aggregators import load_aggregator
from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.evaluation.studies.config import TrainedConfig
from diffusemble.evaluation.studies.lab import Lab
from diffusemble.evaluation.systems import System
from diffusemble.experts.expert import Expert
from diffusemble.settings import load_config
from diffusemble.training.config import TrainConfig
from diffusemble.training.train import Progress, train

WEIGHTS, FINISHED = "aggregator.safetensors", "finished"


@dataclass(frozen=True)
class Variant:
    """One aggregator of a study.

    Attributes:
        title: for tables.
        changes: keys of the training's configuration that make it what it is.
    """

    title: str
    changes: Mapping[str, Any] = field(default_factory=dict)


def train_variants(
    variants: Mapping[str, Variant],
    lab: Lab,
    experts: Mapping[str, Sequence[Expert]] | None = None,
    needed: str = "",
    span: tuple[float, float] = (0, 0.8),
) -> dict[str, EnsembleDenoiser]:
    """Ensembles of all chosen variants: those in ``config.folders``, those trained before, the others trained now.

    Args:
        variants: by name, all that the study knows.
        lab: whose configuration is a ``TrainedConfig``.
        experts: of each variant; those of the lab's ensemble by default.
        needed: the variant that the others are compared with, which is always among them.
        span: from where to where this takes the progress of the study.

    Raises:
        ValueError: a name that the study does not know, or a training that cannot work.
    """
    config = lab.config
    if not isinstance(config, TrainedConfig):
        raise TypeError(f"A study that trains needs a TrainedConfig; got {type(config).__name__}.")
    wanted = chosen(variants, config, needed)
    found = {}
    for number, (name, variant) in enumerate(wanted.items()):
        own = lab.ensemble.experts if experts is None else experts[name]
        start, end = (span[0] + (span[1] - span[0]) * place / len(wanted) for place in (number, number + 1))
        if name in config.folders:
            found[name] = lab.load(config.folders[name])
        else:
            run = settings_of(variant, config, own)
            _trained(run, name, own, lab, (start, end))
            aggregator = load_aggregator(run.output / WEIGHTS, dtype=lab.dtype).to(lab.device)
            found[name] = EnsembleDenoiser(own, aggregator).eval()
    return found


def chosen(variants: Mapping[str, Variant], config: TrainedConfig, needed: str = "") -> dict[str, Variant]:
    """The variants that ``config`` names, or all; ``needed`` is always among them.

    Raises:
        ValueError: a name that the study does not know.
    """
    for name in (*config.variants, *config.folders):
        if name not in variants:
            raise ValueError(f"This study has no variant {name!r}. Choose among: {', '.join(variants)}.")
    return {
        name: variant for name, variant in variants.items() if not config.variants or name in (needed, *config.variants)
    }


def as_systems(ensembles: Mapping[str, EnsembleDenoiser], variants: Mapping[str, Variant]) -> tuple[System, ...]:
    """Systems that draw with the ensembles."""
    return tuple(
        System(name, variants[name].title, "ensemble", ensemble.eval().pipeline())
        for name, ensemble in ensembles.items()
    )


def settings_of(variant: Variant, config: TrainedConfig, experts: Sequence[Expert]) -> TrainConfig:
    """The training's configuration; its output folder is named after everything in it."""
    changes = {
        "experts": [expert.source or expert.name for expert in experts],
        "samples": None,
        "cache": f"{config.out}/cache",
        "output": config.out,
        "steps": config.train_steps,
        **dict(_dotted(config.training)),
        **variant.changes,
    }
    run = load_config(TrainConfig, config.recipe, [f"{key}={json.dumps(value)}" for key, value in changes.items()])
    mark = run.model_dump_json(exclude={"output", "cache"}) + str([dict(expert.files) for expert in experts])
    folder = Path(config.out) / "trained" / hashlib.sha256(mark.encode()).hexdigest()[:12]
    return run.model_copy(update={"output": folder})


def _trained(run: TrainConfig, name: str, experts: Sequence[Expert], lab: Lab, span: tuple[float, float]) -> None:
    def report(now: Progress) -> None:
        share = now.done / now.total if now.total and now.stage == "steps" else 0.0
        lab.tell(span[0] + (span[1] - span[0]) * share, f"training {name}: {now.stage} {now.done}")

    if not (run.output / FINISHED).is_file():
        train(run, experts if run.precision == "fp32" else _apart(experts), report)
        EnsembleDenoiser(experts).pipeline().to(lab.device)  # training may have taken parts to another one
        (run.output / FINISHED).write_text(f"{name}\n", encoding="utf-8")


def _apart(experts: Sequence[Expert]) -> tuple[Expert, ...]:
    """The same experts with denoisers of their own: mixed precision would cast those that are measured later."""
    denoisers = copy.deepcopy([expert.denoiser for expert in experts])  # together, so that copies stay one
    return tuple(replace(expert, denoiser=own) for expert, own in zip(experts, denoisers, strict=True))


def _dotted(nested: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
