"""Runs that are stopped, broken or out of space, and go on."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffusemble.experts.expert import Expert
from diffusemble.training.config import DistillConfig, TrainConfig
from diffusemble.training.distillation import distill
from diffusemble.training.files import StorageError
from diffusemble.training.log import read_log
from diffusemble.training.objective import prediction_error
from diffusemble.training.train import Progress, train
from training.small import same_log, small_config, stop_at


def full_config(data: Path, output: Path, **changes: Any) -> TrainConfig:
    """Everything beyond the paper at once."""
    held_out = {"path": str(data), "where": {"split": "held"}, "count": 3, "buckets": 2, "every": 2}
    terms = {"error": "min-snr", "entropy": 0.1, "pull": 0.1, "balance": 0.1}
    options = {"objective": terms, "ema": 0.5, "keep": "best", "patience": 3, "held_out": held_out, "rate": 0.1}
    return small_config(data, output, **{**options, **changes})


@pytest.mark.parametrize("step", [2, 7])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    experts: tuple[Expert, ...], pictures: Path, tmp_path: Path, whole: Path, step: int
) -> None:
    config = small_config(pictures, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(config, experts, stop_at(step))
    torch.manual_seed(step)
    train(config, experts)
    assert same_log(tmp_path / "run") == same_log(whole)
    one, other = (load_file(folder / "aggregator.safetensors") for folder in (tmp_path / "run", whole))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_averages_best_weights_and_patience_survive_a_stop(
    experts: tuple[Expert, ...], pictures: Path, tmp_path: Path
) -> None:
    for name in ("stopped", "whole"):
        config = full_config(pictures, tmp_path / name)
        for step in (2, 5) if name == "stopped" else ():
            with pytest.raises(KeyboardInterrupt):
                train(config, experts, stop_at(step))
        train(config, experts)
    assert same_log(tmp_path / "stopped") == same_log(tmp_path / "whole")
    one, other = (torch.load(tmp_path / name / "checkpoint.pt") for name in ("stopped", "whole"))
    assert one["step"] == other["step"]
    assert all(map(torch.equal, one["learner"]["average"], other["learner"]["average"]))
    one, other = (load_file(tmp_path / name / "aggregator.safetensors") for name in ("stopped", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_patience_ends_a_run_and_the_best_weights_are_left(
    experts: tuple[Expert, ...], pictures: Path, tmp_path: Path
) -> None:
    config = full_config(pictures, tmp_path / "run", steps=40, rate=0.3, patience=2)
    train(config, experts)
    measured = [(row["step"], row["held_out"]) for row in read_log(tmp_path / "run") if "held_out" in row]
    (last, _), best = measured[-1], min(measured, key=lambda row: row[1])
    assert last < 40
    assert measured.index(best) == len(measured) - 3
    left, kept = (load_file(tmp_path / "run" / name / "aggregator.safetensors") for name in ("", "best"))
    assert all(torch.equal(left[name], kept[name]) for name in left)
    before = (tmp_path / "run" / "log.jsonl").read_text()
    train(config, experts)  # it is over, and stays so
    assert (tmp_path / "run" / "log.jsonl").read_text() == before


def test_logged_means_survive_a_stop(experts: tuple[Expert, ...], pictures: Path, tmp_path: Path) -> None:
    for name in ("stopped", "whole"):
        config = small_config(pictures, tmp_path / name, steps=6, log_every=4, held_out=None)
        if name == "stopped":
            with pytest.raises(KeyboardInterrupt):
                train(config, experts, stop_at(3))
        train(config, experts)
    assert same_log(tmp_path / "stopped") == same_log(tmp_path / "whole")


def test_a_finished_run_is_not_run_again(experts: tuple[Expert, ...], pictures: Path, whole: Path) -> None:
    before = (whole / "log.jsonl").read_text()
    train(small_config(pictures, whole), experts, stop_at(8))
    assert (whole / "log.jsonl").read_text() == before


def test_another_configuration_does_not_go_on(experts: tuple[Expert, ...], pictures: Path, whole: Path) -> None:
    with pytest.raises(ValueError, match=r"was started with another rate: 0.01, now 0.02"):
        train(small_config(pictures, whole, rate=0.02), experts)
    with pytest.raises(ValueError, match=r"another set of experts: (.+), (.+), now \2, \1\. Give"):
        train(small_config(pictures, whole), experts[::-1])


def test_where_a_run_cannot_leave_anything_is_said_before_experts_are_loaded(pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match=r"output is a folder; .*file is no folder"):
        train(small_config(pictures, file))
    with pytest.raises(ValueError, match=r"cache is a folder; .*file/x cannot be made"):
        train(small_config(pictures, tmp_path / "run", cache=file / "x"))
    with pytest.raises(ValueError, match=r"output is a folder; .*file is no folder"):
        distill(DistillConfig(ensemble="absent", data=[{"path": str(pictures)}], output=file))


def test_another_run_is_refused_before_anything_is_encoded(
    experts: tuple[Expert, ...], pictures: Path, whole: Path, tmp_path: Path
) -> None:
    told: list[Progress] = []
    aggregator = {"name": "sabw", "options": {"preset": "tiny", "points": "all"}}
    other = small_config(pictures, whole, aggregator=aggregator, cache=tmp_path)
    with pytest.raises(ValueError, match=r"another aggregator\.options\.points: 'levels', now 'all'"):
        train(other, experts, told.append)
    assert not told
    assert not list(tmp_path.iterdir())


def test_a_broken_loss_keeps_the_last_good_checkpoint(
    experts: tuple[Expert, ...], pictures: Path, tmp_path: Path, whole: Path
) -> None:
    config = small_config(pictures, tmp_path / "run")
    calls = 0

    def breaks(*given: Any) -> torch.Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()  # without, it is measured
        return prediction_error(*given) * (float("nan") if calls == 5 else 1)

    with pytest.raises(FloatingPointError, match="Step 4 gave a loss of nan"):
        train(config, experts, objective=breaks)
    train(config, experts)  # from the checkpoint of step 3
    assert same_log(tmp_path / "run") == same_log(whole)


def test_a_full_disk_keeps_the_last_good_checkpoint(
    experts: tuple[Expert, ...], pictures: Path, tmp_path: Path, whole: Path
) -> None:
    config = small_config(pictures, tmp_path / "run")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(now: Progress) -> None:
        if now.stage == "steps" and now.done == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, unlimited[1]))  # no file may grow beyond this

    try:
        with pytest.raises(StorageError, match=r"Could not write .* run the same command again"):
            train(config, experts, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 3
    assert not list(tmp_path.rglob(".*"))
    train(config, experts)
    assert same_log(tmp_path / "run") == same_log(whole)
