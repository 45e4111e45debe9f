"""An ensemble on disk: the aggregator, and where its experts are with what they must contain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusemble.aggregators.base import Aggregator
from diffusemble.aggregators.storage import load_aggregator, save_aggregator
from diffusemble.experts.expert import Expert

SPEC_FILE = "ensemble.json"
WEIGHTS_FILE = "aggregator.safetensors"


def save_ensemble(folder: str | Path, experts: Sequence[Expert], aggregator: Aggregator) -> None:
    """Write ``ensemble.json`` and ``aggregator.safetensors`` to ``folder``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    references = [{"name": e.name, "source": e.source, "files": dict(e.files)} for e in experts]
    save_aggregator(aggregator, folder / WEIGHTS_FILE)
    (folder / SPEC_FILE).write_text(json.dumps({"format": 1, "experts": references}, indent=2) + "\n")


def load_ensemble(folder: str | Path, **load_options: Any) -> tuple[tuple[Expert, ...], Aggregator]:
    """Experts and aggregator of a folder that ``save_ensemble`` wrote.

    Raises:
        ValueError: the folder is no ensemble, an expert has no source, or its files are missing or have changed.
    """
    from diffusemble.experts.load import load_experts

    folder = Path(folder)
    if not (folder / SPEC_FILE).is_file():
        raise ValueError(f"{folder} is not a saved ensemble: it has no {SPEC_FILE}. Give a folder of save_pretrained.")
    references = json.loads((folder / SPEC_FILE).read_text())["experts"]
    for reference in references:
        if reference["source"] is None:
            raise ValueError(
                f"Expert {reference['name']!r} of {folder} was a bare denoiser without a source. Load it yourself and "
                f"build EnsembleDenoiser(experts, load_aggregator({str(folder / WEIGHTS_FILE)!r}))."
            )
    experts = load_experts(
        [reference["source"] for reference in references],
        names=[reference["name"] for reference in references],
        **load_options,
    )
    for expert, reference in zip(experts, references, strict=True):
        _compare(expert, reference["files"])
    return experts, load_aggregator(folder / WEIGHTS_FILE, dtype=next(experts[0].denoiser.parameters()).dtype)


def _compare(expert: Expert, expected: dict[str, str]) -> None:
    for file, digest in expected.items():
        found = expert.files.get(file)
        if found is None:
            raise ValueError(f"Expert {expert.name!r} ({expert.source}): the file {file} is missing. Restore it.")
        if found != digest:
            raise ValueError(
                f"Expert {expert.name!r} ({expert.source}): {file} has changed since the aggregator was trained "
                f"(SHA-256 {found[:12]}..., expected {digest[:12]}...). Restore the file, or train the aggregator again."
            )
