"""A block-weighted merge as YAML, for ``diffusemble merge --config``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from diffusemble.experts.sources import is_file, parse_sources
from diffusemble.merging.models import check_ending, check_layouts, find
from diffusemble.merging.streams import open_parts

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


def write_recipe(
    file: Path, sources: Sequence[str], weights: Sequence[Mapping[str, float]], out: str | None = None
) -> None:
    """Write the YAML; ``out`` is by default ``merged``, with the ending of a file where the first expert is one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    own = out or ("merged.safetensors" if is_file(sources[0]) else "merged")
    file.write_text(recipe(sources, weights, own), encoding="utf-8")


def check_recipe(sources: Sequence[str], out: str | None, key: str) -> None:
    """Make sure that experts can be merged as they are stored, before hours are spent on their weights.

    Args:
        sources: of the experts.
        out: where the merged model goes, if that was said.
        key: what users say it with.

    Raises:
        ValueError: something is added to an expert, they do not fit together, or ``out`` is named otherwise than what
            they are.
    """
    models = [find(source) for source in parse_sources(sources)]
    check_layouts(models)
    open_parts(models, len(models))
    if out is not None:
        check_ending(Path(out), models[0], key)
