"""Experts whose blocks come when they are needed learn what experts in memory learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from diffusemble.memory.bundle import bytes_of, weights_of
from diffusemble.training.config import DistillConfig
from diffusemble.training.log import read_log
from diffusemble.training.place import place
from diffusemble.training.train import build_ensemble, train
from training.small import small_config, small_experts


def test_a_run_by_a_memory_plan_is_the_same_run(pictures: Path, tmp_path: Path, whole: Path) -> None:
    experts, samples = small_experts(), {"prompts": "one", "steps": 1}
    before = [weight.clone() for expert in experts for weight in expert.denoiser.parameters()]
    train(small_config(pictures, tmp_path / "run", memory={"resident": 0}, steps=2, samples=samples), experts)
    for mine, all_there in zip(read_log(tmp_path / "run")[:3], read_log(whole)[:3], strict=True):
        for name in {"loss", "held_out"} & mine.keys():
            assert mine[name] == pytest.approx(all_there[name], rel=1e-4)
    assert (tmp_path / "run" / "sheets" / "step-000002.png").is_file()
    after = [weight for expert in experts for weight in expert.denoiser.parameters()]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert len({weight.untyped_storage().data_ptr() for weight in after}) == len(after)  # memory of their own again


def test_only_some_blocks_are_there_at_once(pictures: Path, tmp_path: Path) -> None:
    config = small_config(pictures, tmp_path, memory={"resident": 0})
    ensemble = build_ensemble(config, small_experts())
    with place(ensemble, config, torch.device("cpu")) as placed:
        ensemble(torch.randn(1, 4, 8, 8), 500, torch.randn(1, 32, 32)).sample.sum().backward()
        assert placed.residence.peak < 0.7 * bytes_of(weights_of([ensemble]))
    assert all(weight.grad is not None for weight in ensemble.aggregator.parameters())


def test_plans_that_cannot_work_are_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"every expert runs whole, .* leave memory out"):
        small_config(pictures, tmp_path, memory={"resident": 0}, level="output")
    settings = {"ensemble": "any", "data": {"path": str(pictures)}, "output": tmp_path, "memory": {"resident": 0}}
    assert DistillConfig.model_validate(settings).memory is not None
    with pytest.raises(ValidationError, match=r"with lora every block of the experts learns, .* set lora to 0"):
        DistillConfig.model_validate({**settings, "lora": 2})
