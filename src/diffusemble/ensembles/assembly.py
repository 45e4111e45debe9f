"""Ensembles of either level: built from experts, opened from a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusemble.aggregators.base import Combiner
from diffusemble.ensembles.base import Ensemble
from diffusemble.ensembles.block_level import EnsembleDenoiser, build_aggregator
from diffusemble.ensembles.output_level import OutputEnsembleDenoiser, build_output_aggregator
from diffusemble.experts.expert import Expert
from diffusemble.experts.reference import load_ensemble


def assemble(experts: Sequence[Expert], level: str, name: str, options: Mapping[str, Any]) -> Ensemble:
    """Experts and a new aggregator, which meet at every ``"block"`` or at the ``"output"``.

    Raises:
        ValueError: see ``EnsembleDenoiser``, ``OutputEnsembleDenoiser`` and their aggregators.
    """
    if level == "output":
        return OutputEnsembleDenoiser(experts, build_output_aggregator(name, experts, **options))
    return EnsembleDenoiser(experts, build_aggregator(name, [expert.denoiser for expert in experts], **options))


def open_ensemble(folder: str | Path, **load_options: Any) -> Ensemble:
    """What ``save_pretrained`` wrote, of either level: an aggregator with one point alone combines predictions.

    Args:
        folder: of the ensemble.
        load_options: those of ``load_ensemble``: ``sources``, ``dtype``, ``device``, ``added``.

    Raises:
        ValueError: an expert's file is missing or has changed; the message names it.
    """
    return join(*load_ensemble(folder, **load_options))


def join(experts: Sequence[Expert], aggregator: Combiner) -> Ensemble:
    """Experts with a finished aggregator, at the level that it was built for."""
    level = OutputEnsembleDenoiser if len(aggregator.sizes.channels) == 1 else EnsembleDenoiser
    return level(experts, aggregator)
