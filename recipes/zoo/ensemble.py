"""Ship the aggregator that `diffusemble train --config recipes/zoo/ensemble.yaml` wrote, in float16."""

from __future__ import annotations

from pathlib import Path

from diffusemble import EnsembleDenoiser
from diffusemble.zoo.experts import WEIGHTS
from recipes.zoo.settings import WORK


def make(work: Path = WORK, weights: Path = WEIGHTS) -> None:
    """Copy `work/ensemble` to the package."""
    ensemble = EnsembleDenoiser.from_pretrained(work / "ensemble")
    ensemble.aggregator.half()
    ensemble.save_pretrained(weights / "ensembles/topics")
