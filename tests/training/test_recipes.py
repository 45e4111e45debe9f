from __future__ import annotations

from pathlib import Path

import pytest

from diffusemble.settings import load_config
from diffusemble.training.config import TrainConfig

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "training").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipes_are_runs(recipe: Path) -> None:
    config = load_config(TrainConfig, recipe)
    assert config.held_out is not None
    assert (config.rate, config.weight_decay, config.batch) == (1e-4, 0.01, 8)  # AFA's, wherever we know no better
    assert config.gradient_checkpointing == (config.size == 1024 or recipe.stem == "flux")


def test_every_family_has_a_recipe() -> None:
    assert [recipe.stem for recipe in RECIPES] == ["flux", "flux2", "qwen", "sd15", "sd3", "sdxl", "z-image"]
