"""Experts whose blocks come when they are needed learn what experts in memory learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffusemble.ensembles.output_level import OutputEnsembleDenoiser
from diffusemble.experts.adapters import add_adapters
from diffusemble.memory.bundle import bytes_of, weights_of
from diffusemble.training.log import read_log
from diffusemble.training.place import place
from diffusemble.training.train import build_ensemble, train
from training.small import same_log, small_config, small_experts
from training.test_distillation import distill_config, distiller


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


def test_at_output_level_the_run_is_the_same_bit_for_bit(pictures: Path, tmp_path: Path) -> None:
    settings = {"level": "output", "steps": 2, "aggregator": {"name": "sabw", "options": {"preset": "tiny"}}}
    samples = {"prompts": "one", "steps": 1}
    logs = []
    for name, more in (("free", {}), ("placed", {"memory": {"resident": 0}})):
        config = small_config(pictures, tmp_path / name, samples=samples, **settings, **more)
        logs.append(same_log(train(config, small_experts())))
    assert logs[0] == logs[1]
    files = [tmp_path / name / "aggregator.safetensors" for name in ("free", "placed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_at_output_level_one_expert_is_there_at_once(pictures: Path, tmp_path: Path) -> None:
    config = small_config(pictures, tmp_path, level="output", memory={"resident": 0})
    experts = small_experts(3)
    ensemble = OutputEnsembleDenoiser(experts, "mean")
    with place(ensemble, config, torch.device("cpu")) as placed:
        ensemble(torch.randn(1, 4, 8, 8), 500, torch.randn(1, 48, 32))
        largest = max(bytes_of(weights_of([expert.denoiser])) for expert in experts)
        assert largest < placed.residence.peak < 1.1 * largest


def test_adapters_learn_the_same_while_their_experts_pass(pictures: Path) -> None:
    runs = [distiller(pictures, lora=2), distiller(pictures, lora=2, memory={"resident": 0})]
    assert all(blocks.inner.scenes for blocks in runs[1].ensemble.blocks)  # they do pass
    losses = [[run.advance(step).loss for step in range(2)] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for free, placed in zip(*(run.weights for run in runs), strict=True):
        assert torch.allclose(free, placed, atol=1e-4)


def test_controlnets_have_no_part_in_training(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"memory\.controls .* training has none"):
        small_config(pictures, tmp_path, memory={"controls": "visit"})


def test_adapters_at_output_level_stay(pictures: Path, tmp_path: Path) -> None:
    ensemble = OutputEnsembleDenoiser(small_experts(), "mean")
    add_adapters(ensemble.denoisers, 2)
    config = distill_config(pictures, tmp_path, lora=2, memory={"resident": 0})
    with pytest.raises(ValueError, match=r"at output level they run whole, .* or set lora to 0"):
        place(ensemble, config, torch.device("cpu"))
