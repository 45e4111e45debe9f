"""Mixtures through the whole tool: trained, saved, loaded and drawn by its commands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from diffusemble import EnsembleDenoiser
from diffusemble.aggregators.router import Router
from diffusemble.app.cli import app
from diffusemble.training.log import read_log
from tiny import small_pipeline
from training.small import small_config


def save_experts(folder: Path) -> list[str]:
    """A bad expert, which every untrained router chooses, and one that predicts about nothing."""
    for seed, (name, scale) in enumerate({"bad": 20.0, "modest": 0.1}.items()):
        pipeline = small_pipeline(seed)
        with torch.no_grad():
            for parameter in pipeline.unet.conv_out.parameters():
                parameter.mul_(scale)
        pipeline.save_pretrained(folder / name)
    return [str(folder / "bad"), str(folder / "modest")]


def run(*arguments: str | Path) -> None:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixture-denoisers", "mixture-blocks"])
def test_a_mixture_learns_whom_to_choose_and_draws(name: str, pictures: Path, tmp_path: Path) -> None:
    options = {"name": name, "options": {"preset": "tiny", "route_guidance": "shared"}}
    config = small_config(pictures, tmp_path / "run", aggregator=options, steps=40, experts=save_experts(tmp_path))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    run("train", "--config", tmp_path / "run.yaml", f"cache={tmp_path / 'cache'}")
    measured = [row["held_out"] for row in read_log(tmp_path / "run") if "held_out" in row]
    assert measured[-1] < 0.5 * measured[0]
    assert measured[-1] == pytest.approx(1, abs=0.2)  # the error of predicting no noise
    trained = EnsembleDenoiser.from_pretrained(tmp_path / "run").aggregator
    assert isinstance(trained, Router)
    assert trained.options.route_guidance == "shared"
    drawing = ["--ensemble", tmp_path / "run", "--steps", "2", "--size", "16x16", "-o", tmp_path / "cat.png"]
    run("generate", "a cat", *drawing, "--attention")
    assert (tmp_path / "cat.png").is_file()
    assert (tmp_path / "cat-attention.png").is_file()
