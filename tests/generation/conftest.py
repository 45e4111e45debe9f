from __future__ import annotations

import pytest
import torch

from diffusemble import EnsembleDenoiser, build_aggregator, load_experts
from tiny import randomised, small_pipeline


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Two experts as diffusers folders."""
    root = tmp_path_factory.mktemp("experts")
    for seed, name in enumerate(("rock", "fern")):
        small_pipeline(seed).save_pretrained(root / name)
    return str(root / "rock"), str(root / "fern")


@pytest.fixture(scope="session")
def trained(folders: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved ensemble of both, whose aggregator prefers neither everywhere."""
    experts = load_experts(folders)
    torch.manual_seed(0)
    aggregator = build_aggregator("sabw", [expert.denoiser for expert in experts], preset="tiny")
    folder = tmp_path_factory.mktemp("ensemble")
    EnsembleDenoiser(experts, randomised(aggregator)).save_pretrained(folder)
    return str(folder)
