"""One command from a saved ensemble to a page of results."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusemble.ensembles.base import Ensemble
from diffusemble.evaluation.config import BenchConfig, EvaluateConfig
from diffusemble.evaluation.parquet import zoo_table
from diffusemble.evaluation.pictures import METADATA, read_rows
from diffusemble.evaluation.prompt_match import HEADS
from diffusemble.evaluation.report import write_report
from diffusemble.evaluation.results import Results, summarise
from diffusemble.evaluation.scores import Bench, Tell
from diffusemble.evaluation.shards import Shards, launched
from diffusemble.evaluation.specs import choose_systems, ensemble_folder, open_ensemble
from diffusemble.evaluation.store import Store
from diffusemble.evaluation.stored import SYSTEMS, read_scores
from diffusemble.evaluation.systems import System
from diffusemble.provenance import fingerprint, made_with
from diffusemble.samplers import use_sampler
from diffusemble.settings import dump_config

__all__ = ["Prepared", "ensemble_folder", "evaluate", "identity", "machine_notes", "prepare", "summarise"]

NOT_IDENTITY = {
    *("out", "report", "systems", "bootstrap", "threads", "device", "dtype", "ensemble", "experts", "grounds"),
    *("data", "prompts", "metrics", "weights", "repeats", "originals", "references", "category"),
}
CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class Prepared:
    """Loaded and checked: what measuring needs.

    Attributes:
        ensemble: experts and aggregator.
        systems: what is compared, with the run's sampler.
        store: where scores are kept.
        notes: versions and machine.
        identity: what the scores depend on.
    """

    ensemble: Ensemble
    systems: tuple[System, ...]
    store: Store
    notes: Mapping[str, Any]
    identity: Mapping[str, Any]


def evaluate(config: EvaluateConfig, tell: Tell = lambda share, what: None) -> Results:
    """Measure every system by the protocol ``zoo``, keep the scores, write the page.

    Under ``accelerate launch`` the processes share the work, and the first one writes the page.

    Args:
        config: see ``EvaluateConfig``. Scores that ``config.out`` already holds are not measured again.
        tell: told how far it is, 0 to 1, and what is being done.

    Raises:
        ValueError: unknown system, empty split, or a folder with the scores of another run.
        FileNotFoundError: the ensemble, the pictures, or a scorer's weights are missing.
    """
    with launched(config.device == "cpu") as shards:
        rows = read_rows(Path(config.data))
        tell(0.0, "loading")
        data = {"pictures": _hash(Path(config.data) / METADATA), "scorer": _hash(HEADS)}
        ready = prepare(config, shards, data)
        bench = Bench(config, rows, ready.systems, ready.ensemble, ready.store, shards)
        scores = bench.measure(tell)
        results = summarise(scores, config)
        if shards.main:
            zoo_table(read_scores(ready.store), config.times).write(Path(config.out))
            write_report(results, scores, config, ready.notes)
        tell(1.0, f"written: {config.report}")
    return results


def prepare(config: BenchConfig, shards: Shards, data: Mapping[str, Any]) -> Prepared:
    """Load experts and systems, and open the store.

    Args:
        config: of the run.
        shards: the processes that share it.
        data: what identifies the pictures or prompts.

    Raises:
        ValueError: unknown system, or a folder with the scores of another run.
        FileNotFoundError: the zoo has no such ensemble.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device = _device(config.device, shards)
    automatic = "float32" if device.type == "cpu" else "float16"
    dtype: torch.dtype = getattr(torch, automatic if config.dtype == "auto" else config.dtype)
    ensemble = open_ensemble(config, device, dtype)
    chosen = choose_systems(config, ensemble)
    for system in chosen.systems:
        use_sampler(system.pipeline, config.scheduler)
    notes = machine_notes(ensemble)
    depends = {**identity(config, ensemble), **data, "dtype": str(dtype)}
    store = Store(Path(config.out), depends, notes)
    for name, stamp in chosen.stamps.items():
        store.note(f"{SYSTEMS}/stamps/{name}", {}, {"made of": stamp})
    if shards.main:
        (Path(config.out) / CONFIG_FILE).write_text(dump_config(config), encoding="utf-8")
    return Prepared(ensemble, chosen.systems, store, notes, depends)


def identity(config: BenchConfig, ensemble: Ensemble) -> dict[str, Any]:
    """Everything the scores depend on, beside the pictures or prompts."""
    return {
        **config.model_dump(mode="json", exclude=NOT_IDENTITY),
        "experts": {expert.name: dict(expert.files) for expert in ensemble.experts},
        "aggregator": fingerprint(ensemble.aggregator),
    }


def machine_notes(ensemble: Ensemble) -> dict[str, Any]:
    """Versions, processor and threads, aggregator."""
    made = made_with(ensemble)
    return {
        "versions": dict(made.versions),
        "processor": f"{processor()}, {torch.get_num_threads()} threads, {made.device}",
        "aggregator": made.aggregator,
    }


def _device(name: str, shards: Shards) -> torch.device:
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda", shards.rank % torch.cuda.device_count())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _hash(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else None


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
