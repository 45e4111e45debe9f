"""Recipes of block-weighted merges, and what is refused before weights are looked for."""

from __future__ import annotations

import pytest
import torch
import yaml

from diffusemble.merging.recipe import check_recipe, write_recipe
from diffusemble.merging.search import search
from diffusemble.merging.search_config import SearchConfig
from tests.merging.checkpoints import checkpoint
from tests.tiny import tiny_pipeline


@pytest.mark.parametrize(("ending", "name"), [("", "merged"), (".safetensors", "merged.safetensors")])
def test_the_merged_model_is_named_as_the_experts_are_stored(ending, name, tmp_path):
    for out, expected in ((SearchConfig(prompts=["a fox"]).merged, name), ("best", "best")):
        write_recipe(tmp_path / "new/recipe.yaml", [f"a{ending}", f"b{ending}"], [{"M00": 1 / 3}, {"M00": 2 / 3}], out)
        read = yaml.safe_load((tmp_path / "new/recipe.yaml").read_text())
        assert read["out"] == expected
        assert read["blocks"] == [{"M00": 0.333333}, {"M00": 0.666667}]


def test_models_that_do_not_fit_as_they_are_stored_are_refused(tmp_path):
    files = [checkpoint(tmp_path / f"{seed}.safetensors", seed) for seed in range(2)]
    check_recipe(files, None, "--merged")
    check_recipe(files, str(tmp_path / "best.safetensors"), "--merged")
    with pytest.raises(ValueError, match="a model is taken as it is stored, so nothing can be added"):
        check_recipe([files[0], f"{files[1]}+{files[0]}"], None, "--merged")
    other = checkpoint(tmp_path / "other.safetensors", 2, {"first_stage_model.x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"0.safetensors lacks 'first_stage_model.x'"):
        check_recipe([files[0], other], None, "--merged")


def test_a_search_whose_recipe_would_not_merge_does_not_begin(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "one")
    config = SearchConfig(
        experts=[str(tmp_path / "one")] * 2,
        scorer="tests.merging.scorers:redness",
        prompts=["a fox"],
        device="cpu",
        out=str(tmp_path / "out"),
        merged="best.safetensors",
    )
    with pytest.raises(ValueError, match=r"got best.safetensors. Name it accordingly with the key merged: best\."):
        search(config)
    assert not (tmp_path / "out").exists()
