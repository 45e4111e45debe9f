"""Experts that differ: one aggregator learns to combine what they predict."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffusemble.aggregators import load_aggregator
from diffusemble.ensembles.output_level import OutputEnsembleDenoiser
from diffusemble.experts.expert import Expert
from diffusemble.training.log import read_log
from diffusemble.training.train import train
from tests.families.parts import stable, tiny_pixart_pipeline, wider
from tiny import as_expert
from training.small import small_config

pytestmark = pytest.mark.slow


def exaggerating(expert: Expert) -> Expert:
    """The expert, saying four times as much: there is something to learn in a few steps."""
    last = expert.denoiser.conv_out if hasattr(expert.denoiser, "conv_out") else expert.denoiser.proj_out
    with torch.no_grad():
        last.weight.mul_(4)
    return expert


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
