"""Runs in processes of their own: killed ones, and several at once."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import training.small as small
from diffusemble.experts.expert import Expert
from diffusemble.training.config import TrainConfig
from diffusemble.training.log import read_log
from diffusemble.training.rate import rate_at
from diffusemble.training.train import train
from training.small import same_log, small_config

LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def start(config: TrainConfig, folder: Path, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    file = folder / f"{config.output.name}.json"
    file.write_text(config.model_dump_json())
    paths = os.pathsep.join([str(Path(small.__file__).parent), str(Path(small.__file__).parents[1])])
    command = [sys.executable, *launcher, small.__file__, str(file)]
    settings = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths}
    return subprocess.Popen(command, env={**os.environ, **settings})


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_any_moment_goes_on_bit_for_bit(
    experts: tuple[Expert, ...], pictures: Path, tmp_path: Path, whole: Path, seed: int
) -> None:
    config = small_config(pictures, tmp_path / "run", cache=tmp_path / "cache", save_every=1)
    process = start(config, tmp_path)
    file = tmp_path / "run" / "checkpoint.pt"
    while not file.exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(random.Random(seed).uniform(0, 1))
    process.send_signal(signal.SIGKILL)
    assert process.wait() in (-signal.SIGKILL, 0)
    train(config, experts)
    assert same_log(tmp_path / "run") == same_log(whole)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [None, {"resident": 0}])
def test_two_processes_learn_what_one_learns(
    experts: tuple[Expert, ...], pictures: Path, tmp_path: Path, memory: dict[str, Any] | None
) -> None:
    shutil.copytree(pictures, tmp_path / "pictures")
    terms = {"error": "min-snr", "entropy": 0.01, "pull": 0.01}  # balance is a matter of each part of a batch
    changes = {"warmup": 3, "schedule": "cosine", "objective": terms, "ema": 0.5, "keep": "best", "patience": 9}
    config = small_config(tmp_path / "pictures", tmp_path / "run", accumulate=2, memory=memory, **changes)
    process = start(config, tmp_path, LAUNCHER)
    whole = train(small_config(tmp_path / "pictures", tmp_path / "whole", **changes), experts)
    assert process.wait() == 0
    rates = [row["rate"] for row in read_log(tmp_path / "run") if "rate" in row]
    assert rates == [rate_at(step, config) for step in range(8)]
    for mine, alone in zip(read_log(tmp_path / "run"), read_log(whole), strict=True):
        assert mine["step"] == alone["step"]
        for name in {"loss", "norm", "rate", "held_out"} & alone.keys():
            # Sums in another order: exact to rounding at first, and then as far as eight steps carry it.
            assert mine[name] == pytest.approx(alone[name], rel=1e-5 if mine["step"] <= 1 else 2e-3), name
    one, other = (load_file(folder / "aggregator.safetensors") for folder in (tmp_path / "run", whole))
    assert all(torch.allclose(one[name], other[name], atol=2e-3) for name in other)
    assert json.loads((tmp_path / "run" / "ensemble.json").read_text())
