"""Reads `recipe.yaml` and names the working folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import yaml

from recipes.zoo.loop import Plan

WORK = Path(os.environ.get("DIFFUSEMBLE_ZOO_WORK", Path(__file__).parents[2] / "build" / "zoo"))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def settings(part: str) -> dict[str, Any]:
    """Settings of one part of the recipe (`vae`, `text`, `unet`, `experts`, `pack`)."""
    text = Path(__file__).with_name("recipe.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)[part]
    return found


def plan_of(part: str) -> Plan:
    """Length and rates of one part's training."""
    return Plan(**settings(part)["plan"])
