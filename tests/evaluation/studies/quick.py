"""Settings of studies on the tiny experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusemble.evaluation.studies.config import CONFIGS

RECIPE = """
experts: given
output: out
aggregator: {{name: sabw, options: {{preset: tiny}}}}
data: {{path: {pictures}, where: {{split: train}}}}
size: 16
batch: 2
save_every: 1
"""
SHARED: dict[str, Any] = {
    "times": (100, 700),
    "held_out": 3,
    "images": 3,
    "steps": 2,
    "batch": 2,
    "bootstrap": 100,
    "metrics": "prompt-match",
}


def quick(name: str, tiny: Path, out: Path, **changes: Any) -> Any:
    """The configuration of a study of a few seconds; pages and scores go to ``out``."""
    places = {"ensemble": str(tiny / "ensemble"), "data": str(tiny / "pictures")}
    places |= {"out": str(out / "scores"), "docs": str(out / "docs")}
    own: dict[str, dict[str, Any]] = {
        "experts": {"ensembles": str(tiny / "ensemble"), "at": (2, 1)},
        "steps": {"at": (2, 1), "systems": ("weight-average", "ensemble")},
        "attention": {"prompts": "bear, red style"},
        "winners": {"draws": 1},
        "prompts": {"show": 1},
        "cost": {"experts": 2, "repeats": 1, "presets": "small"},
        "copies": {"counts": (1, 2)},
        "quality": {"variants": ("jpeg", "captions")},
        "distilled": {"folders": {"same": str(tiny / "ensemble")}, "at": (1, 2)},
    }
    given = {**SHARED, **places, **own.get(name, {})}
    if "train_steps" in CONFIGS[name].model_fields:
        given |= {"recipe": str(tiny / "recipe.yaml"), "train_steps": 1}
    return CONFIGS[name].model_validate({**given, **changes})
