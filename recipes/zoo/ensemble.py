"""The trained ensemble of the topic experts: train its aggregator and ship it in float16."""

from __future__ import annotations

from pathlib import Path

from diffusemble import EnsembleDenoiser
from diffusemble.settings import load_config
from diffusemble.training.config import TrainConfig
from diffusemble.training.train import train
from diffusemble.zoo.experts import WEIGHTS
from recipes.zoo.settings import WORK

RECIPE = Path(__file__).with_name("ensemble.yaml")


def make(work: Path = WORK, weights: Path = WEIGHTS) -> None:
    """Train what `ensemble.yaml` says, going on where it stopped, and copy it to the package."""
    folder = train(load_config(TrainConfig, RECIPE, output=str(work / "ensemble")))
    ensemble = EnsembleDenoiser.from_pretrained(folder)
    ensemble.aggregator.half()
    ensemble.save_pretrained(weights / "ensembles/topics")
