from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusemble.aggregators import load_aggregator
from diffusemble.ensembles.block_level import EnsembleDenoiser, build_aggregator
from diffusemble.experts.expert import Expert
from diffusemble.settings import load_config
from diffusemble.training.config import TrainConfig
from diffusemble.training.log import read_log
from diffusemble.training.objective import prediction_error
from diffusemble.training.train import Progress, build_ensemble, train
from tiny import tiny_vae
from training.small import small_config, small_experts


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
    mean = build_aggregator("mean", [expert.denoiser for expert in experts], points="levels")
    ensemble, diffusion = EnsembleDenoiser(experts, mean), diffusion_of(experts, torch.device("cpu"))
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
        train(small_config(pictures, folder, steps=6, objective={"pull": pull}, held_out=None), experts)
        ensemble = EnsembleDenoiser(experts, load_aggregator(folder / "aggregator.safetensors")).eval()
        with torch.no_grad(), record_attention(ensemble) as maps:
            ensemble(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), 500, torch.zeros(2, 32, 32))
        spread.append(max(float((one - 0.5).abs().mean()) for calls in maps.calls for one in calls))
    assert spread[1] < spread[0] / 5


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


def test_one_vae_serves_all_experts(tmp_path: Path) -> None:
    expert = small_experts(1)[0]
    expert.pipeline_class(**expert.components, unet=expert.denoiser).save_pretrained(tmp_path / "expert")
    tiny_vae(9).save_pretrained(tmp_path / "vae")
    config = small_config(tmp_path, tmp_path, experts=str(tmp_path / "expert"), vae=str(tmp_path / "vae"))
    vae = build_ensemble(config).experts[0].components["vae"]
    assert torch.equal(vae.decoder.conv_in.weight, tiny_vae(9).decoder.conv_in.weight)


def test_tensorboard_gets_the_log(experts: tuple[Expert, ...], pictures: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(small_config(pictures, tmp_path / "run", steps=2, tensorboard=True), experts)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(
        [row["loss"] for row in read_log(tmp_path / "run") if "loss" in row]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"error": "cosmap"}}, "'cosmap' weights the levels of flow matching"),
        ({"levels": {"shift": 3}}, "levels.shift moves the levels of flow matching"),
        ({"embedded_guidance": 1}, "experts that are told a guidance scale"),
    ],
)
def test_what_belongs_to_other_experts_is_refused(
    experts: tuple[Expert, ...], pictures: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(small_config(pictures, tmp_path, **changes), experts)
