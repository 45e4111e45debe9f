from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import training.small as small
from diffusemble.aggregators import load_aggregator
from diffusemble.ensemble import EnsembleDenoiser
from diffusemble.experts.expert import Expert
from diffusemble.settings import load_config
from diffusemble.training.config import TrainConfig
from diffusemble.training.files import StorageError
from diffusemble.training.log import read_log
from diffusemble.training.objective import prediction_error
from diffusemble.training.rate import rate_at
from diffusemble.training.train import Progress, train
from training.small import small_config, small_experts


def losses(folder: Path) -> list[tuple[Any, ...]]:
    """Everything the log says, but for how long it took."""
    return [tuple((name, str(row[name])) for name in row if name != "seconds") for row in read_log(folder)]


def stop_at(step: int) -> Callable[[Progress], None]:
    def tell(now: Progress) -> None:
        if now.stage == "steps" and now.done == step:
            raise KeyboardInterrupt

    return tell


@pytest.fixture(scope="session")
def whole(experts: tuple[Expert, ...], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    return train(small_config(pictures, tmp_path_factory.mktemp("runs") / "whole"), experts)


def test_a_run_leaves_an_ensemble_a_log_and_its_configuration(
    experts: tuple[Expert, ...], pictures: Path, whole: Path
) -> None:
    assert sorted(path.name for path in whole.iterdir()) == sorted(
        ["aggregator.safetensors", "best", "checkpoint.pt", "config.yaml", "ensemble.json", "log.jsonl"]
    )
    assert load_config(TrainConfig, whole / "config.yaml") == small_config(pictures, whole)
    trained = EnsembleDenoiser(experts, load_aggregator(whole / "aggregator.safetensors"))
    plain = EnsembleDenoiser(experts, "mean")
    given = torch.randn(1, 4, 8, 8), 500, torch.randn(1, 32, 32)
    assert not torch.allclose(trained(*given).sample, plain(*given).sample, atol=1e-4)


def test_the_log_has_every_step_and_every_measurement(whole: Path) -> None:
    rows = read_log(whole)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))
    measured = [row for row in rows if "held_out" in row]
    assert [row["step"] for row in measured] == [0, 4, 8]
    assert all(sum(row["buckets"]) / 2 == pytest.approx(row["held_out"]) for row in measured)
    assert measured[-1]["held_out"] < measured[0]["held_out"]


def test_before_the_first_step_the_held_out_loss_is_that_of_the_mean(
    experts: tuple[Expert, ...], pictures: Path, tmp_path: Path, whole: Path
) -> None:
    from diffusemble.training.corpus import encode_corpus
    from diffusemble.training.held_out import HeldOut, held_out_errors
    from diffusemble.training.schedule import diffusion_of

    config = small_config(pictures, tmp_path)
    assert config.held_out is not None
    ensemble, diffusion = EnsembleDenoiser(experts, "mean"), diffusion_of(experts, torch.device("cpu"))
    corpus = encode_corpus([config.held_out], config, ensemble, lambda *_: None)
    held_out = HeldOut.choose(corpus, 3, 2, diffusion)
    errors = held_out_errors(held_out, partial(corpus.feed.predict, ensemble), prediction_error, diffusion, size=4)
    assert errors.shape == (3, 2)
    assert read_log(whole)[0]["held_out"] == pytest.approx(errors.mean().item(), rel=1e-5)


def test_progress_is_told(experts: tuple[Expert, ...], pictures: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    train(small_config(pictures, tmp_path / "out", steps=2, cache=tmp_path / "cache"), experts, told.append)
    assert [(now.stage, now.done, now.total) for now in told] == [
        ("pictures", 10, 10),
        ("captions", 10, 10),
        ("pictures", 4, 4),
        ("captions", 4, 4),
        ("steps", 1, 2),
        ("steps", 2, 2),
    ]
    assert told[-1].seconds_left == 0
    assert told[-2].seconds_left is not None
    assert told[-2].seconds_left > 0


@pytest.mark.parametrize("step", [2, 7])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    experts: tuple[Expert, ...], pictures: Path, tmp_path: Path, whole: Path, step: int
) -> None:
    config = small_config(pictures, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(config, experts, stop_at(step))
    torch.manual_seed(step)
    train(config, experts)
    assert losses(tmp_path / "run") == losses(whole)
    one, other = (load_file(folder / "aggregator.safetensors") for folder in (tmp_path / "run", whole))
    assert all(torch.equal(one[name], other[name]) for name in other)


def full_config(data: Path, output: Path, **changes: Any) -> TrainConfig:
    """Everything beyond the paper at once."""
    held_out = {"path": str(data), "where": {"split": "held"}, "count": 3, "buckets": 2, "every": 2}
    terms = {"error": "min-snr", "entropy": 0.1, "pull": 0.1, "balance": 0.1}
    options = {"objective": terms, "ema": 0.5, "keep": "best", "patience": 3, "held_out": held_out, "rate": 0.1}
    return small_config(data, output, **{**options, **changes})


def test_averages_best_weights_and_patience_survive_a_stop(
    experts: tuple[Expert, ...], pictures: Path, tmp_path: Path
) -> None:
    for name in ("stopped", "whole"):
        config = full_config(pictures, tmp_path / name)
        for step in (2, 5) if name == "stopped" else ():
            with pytest.raises(KeyboardInterrupt):
                train(config, experts, stop_at(step))
        train(config, experts)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
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


def test_the_held_out_loss_does_not_depend_on_the_objective(
    experts: tuple[Expert, ...], pictures: Path, tmp_path: Path, whole: Path
) -> None:
    train(small_config(pictures, tmp_path / "run", steps=1, objective={"error": "velocity", "pull": 1}), experts)
    rows = read_log(tmp_path / "run")
    assert rows[0]["held_out"] == read_log(whole)[0]["held_out"]
    assert rows[1]["loss"] > read_log(whole)[1]["loss"]  # a velocity error is larger than that of the noise


def test_terms_on_the_maps_keep_them_near_the_mean(experts: tuple[Expert, ...], pictures: Path, tmp_path: Path) -> None:
    from diffusemble.aggregators.recording import record_attention

    spread = []
    for pull in (0, 10):
        folder = tmp_path / str(pull)
        train(small_config(pictures, folder, steps=12, objective={"pull": pull}, held_out=None), experts)
        ensemble = EnsembleDenoiser(experts, load_aggregator(folder / "aggregator.safetensors")).eval()
        with torch.no_grad(), record_attention(ensemble) as maps:
            ensemble(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), 500, torch.zeros(2, 32, 32))
        spread.append(max(float((one - 0.5).abs().mean()) for calls in maps.calls for one in calls))
    assert spread[1] < spread[0] / 5


def test_logged_means_survive_a_stop(experts: tuple[Expert, ...], pictures: Path, tmp_path: Path) -> None:
    for name in ("stopped", "whole"):
        config = small_config(pictures, tmp_path / name, steps=6, log_every=4, held_out=None)
        if name == "stopped":
            with pytest.raises(KeyboardInterrupt):
                train(config, experts, stop_at(3))
        train(config, experts)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_a_finished_run_is_not_run_again(experts: tuple[Expert, ...], pictures: Path, whole: Path) -> None:
    before = (whole / "log.jsonl").read_text()
    train(small_config(pictures, whole), experts, stop_at(8))
    assert (whole / "log.jsonl").read_text() == before


def test_another_configuration_does_not_go_on(experts: tuple[Expert, ...], pictures: Path, whole: Path) -> None:
    with pytest.raises(ValueError, match=r"was started with another rate: 0.01, now 0.02"):
        train(small_config(pictures, whole, rate=0.02), experts)
    with pytest.raises(ValueError, match="was started with another set of experts"):
        train(small_config(pictures, whole), experts[::-1])


def test_a_broken_loss_keeps_the_last_good_checkpoint(
    experts: tuple[Expert, ...], pictures: Path, tmp_path: Path, whole: Path
) -> None:
    config = small_config(pictures, tmp_path / "run")
    calls = 0

    def breaks(*given: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return prediction_error(*given) * (float("nan") if calls == 7 else 1)  # two measurements, four good steps

    with pytest.raises(FloatingPointError, match="Step 4 gave a loss of nan"):
        train(config, experts, objective=breaks)
    train(config, experts)  # from the checkpoint of step 3
    assert losses(tmp_path / "run") == losses(whole)


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
    assert losses(tmp_path / "run") == losses(whole)


def test_sheets_show_fixed_prompts_and_seeds(experts: tuple[Expert, ...], pictures: Path, tmp_path: Path) -> None:
    samples = {"prompts": ["one", "two", "three"], "steps": 2, "every": 2}
    config = small_config(pictures, tmp_path / "run", steps=2, rate=1e-9, samples=samples, held_out=None)
    train(config, experts)
    sheets = [Image.open(tmp_path / "run" / "sheets" / f"step-{step:06d}.png") for step in (0, 2)]
    assert sheets[0].size == (48, 16)
    difference = max(abs(a - b) for a, b in zip(*(sheet.tobytes() for sheet in sheets), strict=True))
    assert difference <= 2  # a rate of nearly nothing: the same pictures


def test_mixed_precision_trains(pictures: Path, tmp_path: Path, whole: Path) -> None:
    experts, samples = small_experts(), {"prompts": "one", "steps": 1}
    train(small_config(pictures, tmp_path / "run", precision="bf16", steps=2, samples=samples), experts)
    assert experts[0].denoiser.dtype == torch.bfloat16
    weights = load_file(tmp_path / "run" / "aggregator.safetensors")
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    for mine, exact in zip(read_log(tmp_path / "run")[:3], read_log(whole)[:3], strict=True):
        assert mine.get("loss", mine.get("held_out")) == pytest.approx(
            exact.get("loss", exact.get("held_out")), rel=0.05
        )


def test_half_precision_needs_an_accelerator(experts: tuple[Expert, ...], pictures: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        return
    with pytest.raises(ValueError, match="precision 'fp16' needs an accelerator"):
        train(small_config(pictures, tmp_path, precision="fp16"), experts)


def test_experts_from_folders_and_their_ensemble_open_again(pictures: Path, tmp_path: Path) -> None:
    for expert in small_experts():
        expert.pipeline_class(**expert.components, unet=expert.denoiser).save_pretrained(tmp_path / expert.name)
    sources = [str(tmp_path / "expert 0"), str(tmp_path / "expert 1")]
    folder = train(small_config(pictures, tmp_path / "run", experts=sources, steps=2, held_out=None))
    shutil.move(tmp_path, tmp_path.with_name("moved"))  # references are relative
    opened = EnsembleDenoiser.from_pretrained(tmp_path.with_name("moved") / folder.name)
    saved = load_file(tmp_path.with_name("moved") / folder.name / "aggregator.safetensors")
    assert all(torch.equal(weight, saved[name]) for name, weight in opened.aggregator.state_dict().items())
    assert [expert.name for expert in opened.experts] == ["expert 0", "expert 1"]


def test_tensorboard_gets_the_log(experts: tuple[Expert, ...], pictures: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(small_config(pictures, tmp_path / "run", steps=2, tensorboard=True), experts)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(
        [row["loss"] for row in read_log(tmp_path / "run") if "loss" in row]
    )


# -- in processes of their own -----------------------------------------------------------------------------------------


def start(config: TrainConfig, folder: Path, launcher: tuple[str, ...] = (), **environment: str) -> subprocess.Popen:
    file = folder / f"{config.output.name}.json"
    file.write_text(config.model_dump_json())
    paths = os.pathsep.join([str(Path(small.__file__).parent), str(Path(small.__file__).parents[1])])
    command = [sys.executable, *launcher, small.__file__, str(file)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **environment})


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
    assert losses(tmp_path / "run") == losses(whole)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(experts: tuple[Expert, ...], pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "pictures")
    terms = {"error": "min-snr", "entropy": 0.01, "pull": 0.01}  # balance is a matter of each part of a batch
    changes = {"warmup": 3, "schedule": "cosine", "objective": terms, "ema": 0.5, "keep": "best", "patience": 9}
    config = small_config(tmp_path / "pictures", tmp_path / "run", accumulate=2, **changes)
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1")
    process = start(config, tmp_path, (*launcher, "--mixed_precision", "no", "--dynamo_backend", "no"))
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
