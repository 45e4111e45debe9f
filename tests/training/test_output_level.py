"""Experts that differ: one aggregator learns to combine what they predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusemble.aggregators import load_aggregator
from diffusemble.ensembles.assembly import open_ensemble
from diffusemble.ensembles.output_level import OutputEnsembleDenoiser, build_output_aggregator
from diffusemble.experts.expert import Expert
from diffusemble.experts.load import load_experts
from diffusemble.training.config import DistillConfig, RunConfig
from diffusemble.training.distillation import distill
from diffusemble.training.log import read_log
from diffusemble.training.train import train
from tests.families.parts import stable, tiny_pixart_pipeline, wider
from tiny import as_expert, randomised
from tiny_dit import tiny_chroma_pipeline, tiny_flux_pipeline, tiny_sd3_pipeline
from tiny_z_image import tiny_z_image_pipeline
from training.small import small_config


def exaggerating(expert: Expert) -> Expert:
    """The expert, saying four times as much: there is something to learn in a few steps."""
    lasts = "conv_out.weight", "proj_out.weight", "all_final_layer.2-1.linear.weight"
    with torch.no_grad():
        next(weight for name, weight in expert.denoiser.named_parameters() if name in lasts).mul_(4)
    return expert


@pytest.mark.slow
@pytest.mark.parametrize("first", ["noise", "velocity"])
def test_the_held_out_loss_of_experts_that_differ_falls(first: str, pictures: Path, tmp_path: Path) -> None:
    own = [stable(), exaggerating(wider())]
    experts = [*(own if first == "noise" else own[::-1]), exaggerating(as_expert(tiny_pixart_pipeline(), "pixart"))]
    held_out = {"path": str(pictures), "where": {"split": "held"}, "count": 4, "buckets": 4, "every": 6}
    config = small_config(pictures, tmp_path / "run", level="output", steps=12, rate=2e-2, held_out=held_out)
    frozen = [weight.clone() for expert in experts for weight in expert.denoiser.parameters()]
    folder = train(config, experts)
    measured = [row["held_out"] for row in read_log(folder) if "held_out" in row]
    assert measured[-1] < 0.9 * measured[0]
    weights = (weight for expert in experts for weight in expert.denoiser.parameters())
    assert all(torch.equal(before, now) for before, now in zip(frozen, weights, strict=True))
    OutputEnsembleDenoiser(experts, load_aggregator(folder / "aggregator.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "makes",
    [
        (tiny_sd3_pipeline, tiny_sd3_pipeline),
        (tiny_flux_pipeline, tiny_flux_pipeline),
        (tiny_flux_pipeline, tiny_chroma_pipeline),
        (tiny_chroma_pipeline, tiny_flux_pipeline),
        (tiny_flux_pipeline, tiny_z_image_pipeline),
        (tiny_z_image_pipeline, tiny_flux_pipeline),
    ],
)
def test_transformers_may_come_first(makes: Sequence[Any], pictures: Path, tmp_path: Path) -> None:
    experts = [as_expert(make(seed), f"expert {seed}") for seed, make in enumerate(makes)]
    held_out = {"path": str(pictures), "where": {"split": "held"}, "count": 4, "buckets": 4, "every": 6}
    config = small_config(pictures, tmp_path / "run", level="output", steps=6, rate=2e-2, held_out=held_out)
    exaggerating(experts[1])
    first, last = (row["held_out"] for row in read_log(train(config, experts)) if "held_out" in row)
    assert last < first


@pytest.mark.slow
@pytest.mark.parametrize("lora", [0, 2])
def test_they_are_distilled_like_others(lora: int, pictures: Path, tmp_path: Path) -> None:
    for name, expert in (("one", stable()), ("two", wider())):
        parts = {"safety_checker": None, "feature_extractor": None, **expert.components, "unet": expert.denoiser}
        expert.pipeline_class(**parts, requires_safety_checker=False).save_pretrained(tmp_path / name)
    experts = load_experts([tmp_path / "one", tmp_path / "two"])
    aggregator = randomised(build_output_aggregator("sabw", experts, preset="tiny"))
    OutputEnsembleDenoiser(experts, aggregator).save_pretrained(tmp_path / "ensemble")
    settings = small_config(pictures, tmp_path / "run", steps=2).model_dump(include=set(RunConfig.model_fields))
    own = {"ensemble": str(tmp_path / "ensemble"), "grid": 10, "lora": lora, "held_out": None}
    opened = [open_ensemble(distill(DistillConfig.model_validate({**settings, **own}))) for _ in range(2)]
    assert isinstance(opened[0], OutputEnsembleDenoiser)
    assert not torch.equal(next(opened[0].aggregator.parameters()), next(aggregator.parameters()))
    pipelines = [ensemble.eval().pipeline() for ensemble in opened]
    given = {"num_inference_steps": 2, "guidance_scale": 1.0, "height": 16, "width": 16, "output_type": "pt"}
    one, two = (pipe("x", generator=torch.Generator().manual_seed(0), **given).images for pipe in pipelines)
    assert torch.equal(one, two)
