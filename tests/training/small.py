"""A small training run: two real experts, a handful of pictures; also a script that trains in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.experts.expert import Expert
from diffusemble.training.config import TrainConfig
from diffusemble.training.corpus import Corpus, encode_corpus
from diffusemble.training.log import read_log
from diffusemble.training.train import Progress, train
from tiny import small_pipeline, small_unet

SCHEDULE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
UNET = {"block_out_channels": (16, 32), "norm_num_groups": 8}  # wide enough to learn from


def small_experts(count: int = 2) -> tuple[Expert, ...]:
    experts = []
    for seed in range(count):
        pipeline = small_pipeline(seed, unet=small_unet(seed, **UNET))
        parts = {name: part for name, part in pipeline.components.items() if name != "unet"}
        experts.append(Expert(f"expert {seed}", pipeline.unet, parts, type(pipeline)))
    return tuple(experts)


def write_pictures(folder: Path, sides: Sequence[tuple[int, int]] = ((20, 24),) * 14, **columns: Sequence[Any]) -> None:
    """Noise pictures of these heights and widths; of 14, the last four are held out; ``columns`` of the metadata."""
    folder.mkdir(parents=True)
    generator, rows = np.random.default_rng(0), []
    for number, side in enumerate(sides):
        Image.fromarray(generator.integers(0, 255, (*side, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        row = {"file_name": f"{number}.png", "text": f"picture {number}", "split": "train" if number < 10 else "held"}
        rows.append({**row, **{name: values[number] for name, values in columns.items()}})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def small_config(data: Path, output: Path, **changes: Any) -> TrainConfig:
    """Eight steps, everything logged, a checkpoint every third step."""
    settings = {
        "experts": "made in code",
        "data": {"path": str(data), "where": {"split": "train"}},
        "held_out": {"path": str(data), "where": {"split": "held"}, "count": 3, "buckets": 2, "every": 4},
        "aggregator": {"name": "sabw", "options": {"preset": "tiny", "points": "levels"}},
        "cache": data.parent / "cache",
        "output": output,
        "size": 16,
        "steps": 8,
        "batch": 4,
        "rate": 1e-2,
        "log_every": 1,
        "save_every": 3,
    }
    return TrainConfig.model_validate({**settings, **changes})


def encode(experts: Sequence[Expert], data: Path, output: Path, **changes: Any) -> Corpus:
    """Pictures of ``data`` and their captions, as ``experts`` are told them."""
    config = small_config(data, output, cache=output / "cache", **changes)
    return encode_corpus(config.data, config, EnsembleDenoiser(experts), lambda *_: None)


def same_log(folder: Path) -> list[tuple[Any, ...]]:
    """Everything the log says, but for how long it took."""
    return [tuple((name, str(row[name])) for name in row if name != "seconds") for row in read_log(folder)]


def stop_at(step: int) -> Callable[[Progress], None]:
    """A progress callback that interrupts the run after ``step``."""

    def tell(now: Progress) -> None:
        if now.stage == "steps" and now.done == step:
            raise KeyboardInterrupt

    return tell


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(TrainConfig.model_validate_json(Path(sys.argv[1]).read_text()), small_experts())
