"""One command from a saved ensemble to a page of results."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Any

import torch

from diffusemble.drawing import build_scheduler
from diffusemble.ensemble import EnsembleDenoiser
from diffusemble.evaluation.config import EvaluateConfig
from diffusemble.evaluation.pictures import METADATA, read_rows
from diffusemble.evaluation.prompt_match import HEADS
from diffusemble.evaluation.report import write_report
from diffusemble.evaluation.results import Results, summarise
from diffusemble.evaluation.scores import Bench, Tell
from diffusemble.evaluation.store import Store
from diffusemble.evaluation.systems import build_systems, select
from diffusemble.experts.load import load_experts
from diffusemble.provenance import fingerprint, made_with
from diffusemble.zoo import trained_ensemble

NOT_IDENTITY = {"out", "report", "systems", "bootstrap", "threads"}


def evaluate(config: EvaluateConfig, tell: Tell = lambda share, what: None) -> Results:
    """Measure every system, keep the scores, write the page.

    Args:
        config: see ``EvaluateConfig``. Scores that ``config.out`` already holds are not measured again.
        tell: told how far it is, 0 to 1, and what is being done.

    Raises:
        ValueError: unknown system, empty split, or a folder with the scores of another run.
        FileNotFoundError: the ensemble, the pictures, or a scorer's weights are missing.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    rows = read_rows(Path(config.data))
    tell(0.0, "loading")
    ensemble = EnsembleDenoiser.from_pretrained(ensemble_folder(config.ensemble)).eval()
    base = load_experts(config.base)[0] if config.base else None
    systems = select(build_systems(ensemble, base), config.systems)
    for system in systems:
        system.pipeline.scheduler = build_scheduler(config.scheduler, system.pipeline.scheduler.config)
    notes = machine_notes(ensemble)
    store = Store(Path(config.out), identity(config, ensemble), notes)
    bench = Bench(config, rows, systems, ensemble, store)
    scores = bench.measure(tell)
    results = summarise(scores, config, len({row.concept for row in rows}))
    write_report(results, scores, config, notes)
    tell(1.0, f"written: {config.report}")
    return results


def ensemble_folder(source: str) -> Path:
    """Folder of ``zoo:<group>``, or the folder itself.

    Raises:
        FileNotFoundError: the zoo has no trained ensemble for the group.
    """
    kind, colon, group = source.partition(":")
    if kind != "zoo" or not colon:
        return Path(source)
    folder = trained_ensemble(group)
    if folder is None:
        raise FileNotFoundError(
            f"The zoo has no trained ensemble for the group {group!r}. Train one with `diffusemble train`, and give "
            f"its folder as ensemble."
        )
    return folder


def identity(config: EvaluateConfig, ensemble: EnsembleDenoiser) -> dict[str, Any]:
    """Everything the scores depend on."""
    settings = config.model_dump(mode="json", exclude=NOT_IDENTITY)
    return {
        **settings,
        "pictures": hashlib.sha256((Path(config.data) / METADATA).read_bytes()).hexdigest()[:16],
        "experts": {expert.name: dict(expert.files) for expert in ensemble.experts},
        "aggregator": fingerprint(ensemble.aggregator),
        "scorer": hashlib.sha256(HEADS.read_bytes()).hexdigest()[:16] if HEADS.is_file() else None,
    }


def machine_notes(ensemble: EnsembleDenoiser) -> dict[str, Any]:
    """Versions, processor and threads, aggregator."""
    made = made_with(ensemble)
    return {
        "versions": dict(made.versions),
        "processor": f"{_processor()}, {torch.get_num_threads()} threads, {made.device}",
        "aggregator": made.aggregator,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
