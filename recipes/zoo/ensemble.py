"""The trained ensembles of the groups: train an aggregator for each and ship it in float16."""

from __future__ import annotations

from pathlib import Path

from diffusemble import EnsembleDenoiser
from diffusemble.settings import load_config
from diffusemble.training.config import TrainConfig
from diffusemble.training.train import train
from diffusemble.zoo import groups
from diffusemble.zoo.experts import WEIGHTS
from recipes.zoo.settings import WORK

RECIPE = Path(__file__).with_name("ensemble.yaml")
FEWER = {"two": 200, "four": 200, "five": 200, "six": 200}  # steps of the groups that only the study of sizes compares


def make(work: Path = WORK, weights: Path = WEIGHTS, names: tuple[str, ...] = ()) -> None:
    """Train what `ensemble.yaml` says for every group, going on where it stopped, and copy it to the package."""
    for group in names or tuple(groups()):
        output = str(work / "ensembles" / group)
        steps = {"steps": FEWER[group]} if group in FEWER else {}
        folder = train(load_config(TrainConfig, RECIPE, experts=f"zoo:{group}", output=output, **steps))
        ensemble = EnsembleDenoiser.from_pretrained(folder)
        ensemble.aggregator.half()
        target = weights / "ensembles" / group
        ensemble.save_pretrained(target)
        for file in target.glob("*.safetensors"):
            file.chmod(0o644)
