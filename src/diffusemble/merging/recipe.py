"""A block-weighted merge as YAML, for ``diffusemble merge --config``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

DIGITS = 6


def recipe(sources: Sequence[str], weights: Sequence[Mapping[str, float]], out: str) -> str:
    """YAML of a merge.

    Args:
        sources: of the experts.
        weights: one weight per slot for every expert; written with six digits.
        out: where the merged model goes.
    """
    blocks = [{slot: round(float(weight), DIGITS) for slot, weight in own.items()} for own in weights]
    content = {"experts": list(sources), "method": "weighted", "blocks": blocks, "out": out}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def write_recipe(file: Path, sources: Sequence[str], weights: Sequence[Mapping[str, float]], out: str) -> None:
    """Write the YAML."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(recipe(sources, weights, out), encoding="utf-8")
