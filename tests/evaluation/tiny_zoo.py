"""A saved tiny ensemble and a few captioned pictures, for evaluations that take seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffusemble.ensembles.block_level import EnsembleDenoiser, build_aggregator
from diffusemble.evaluation.config import EvaluateConfig
from diffusemble.experts.load import load_experts
from tests.tiny import randomised, small_pipeline, tiny_text_encoder

CONCEPTS = {"bear": "animals", "fox": "animals", "saw": "things", "jug": "things", "elf": "people", "nun": "people"}
STYLES = ("red", "blue")
SPLITS = {"bear": "pair", "saw": "pair", "elf": "pair", "nun": "concept"}


def write_pictures(folder: Path) -> Path:
    """Sixteen-pixel pictures of six concepts in two styles; the second style of three concepts is held out."""
    rng, rows = np.random.default_rng(0), []
    for style in STYLES:
        (folder / style).mkdir(parents=True)
        for concept, topic in CONCEPTS.items():
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / style / f"{concept}.png")
            split = SPLITS.get(concept, "train")
            split = "train" if split == "pair" and style == "red" else split
            row = {"file_name": f"{style}/{concept}.png", "text": f"{concept}, {style} style", "concept": concept}
            rows.append({**row, "style": style, "topic": topic, "split": split})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def save_experts(folder: Path, n: int = 2) -> list[Path]:
    """Diffusers folders of n experts that share their text encoder."""
    text_encoder = tiny_text_encoder()
    for seed in range(n):
        small_pipeline(seed, text_encoder=text_encoder).save_pretrained(folder / f"expert-{seed}")
    return [folder / f"expert-{seed}" for seed in range(n)]


def save_tiny_ensemble(folder: Path) -> Path:
    """An ensemble of two experts whose aggregator is not the mean."""
    experts = load_experts(save_experts(folder))
    torch.manual_seed(7)
    aggregator = build_aggregator("sabw", [e.denoiser for e in experts], width=64, heads=4, layers=1)
    EnsembleDenoiser(experts, randomised(aggregator)).save_pretrained(folder / "ensemble")
    return folder / "ensemble"


def tiny_config(folder: Path, **settings: Any) -> EvaluateConfig:
    """An evaluation of a few seconds in ``folder``, which has ``pictures`` and ``ensemble``."""
    default = {
        "ensemble": str(folder / "ensemble"),
        "base": "",
        "data": str(folder / "pictures"),
        "out": str(folder / "out"),
        "report": str(folder / "results.md"),
        "times": (100, 700),
        "draws": 1,
        "metrics": ("prompt-match",),
        "grounds": {"expert-0": {"topic": ("animals", "people")}, "expert-1": {"topic": "things"}},
        "images": 4,
        "steps": 2,
        "batch": 2,
        "bootstrap": 200,
    }
    return EvaluateConfig(**{**default, **settings})
