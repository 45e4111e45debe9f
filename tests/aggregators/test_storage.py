"""Files of aggregators: what is wrong with one is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusemble import build_aggregator
from diffusemble.aggregators import load_aggregator, load_published, save_aggregator
from diffusemble.aggregators.base import Aggregator, AggregatorOptions, Sizes
from diffusemble.aggregators.storage import HEADER_KEY
from laws import denoisers

OFFICIAL = Path(__file__).parents[1] / "golden" / "afa" / "official"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("saved") / "aggregator.safetensors"
    models = denoisers(1, 2, dtype=torch.float32)
    save_aggregator(build_aggregator("sabw", models, preset="tiny", points=(0, 24)), file)
    return file


def test_the_header_says_what_to_build(saved: Path):
    with safe_open(str(saved), framework="pt") as opened:
        spec = json.loads(opened.metadata()[HEADER_KEY])
    assert spec["name"] == "sabw"
    size = {"width": 16, "heads": 4, "layers": 1, "groups": 4, "pool": 1, "pool_from": 32}
    assert spec["options"] == {"points": [0, 24], **size, "time": True, "text": True, "spatial": True}
    assert (spec["sizes"]["experts"], spec["sizes"]["text"], len(spec["sizes"]["channels"])) == (2, 20, 25)


def test_files_from_before_there_were_routers_are_read(saved: Path, tmp_path: Path):
    with safe_open(str(saved), framework="pt") as opened:
        spec = json.loads(opened.metadata()[HEADER_KEY])
    del spec["sizes"]["latents"]
    spec["options"] = {key: spec["options"][key] for key in ("points", "width", "heads", "layers", "groups")}
    save_file(load_file(saved), tmp_path / "old.safetensors", metadata={HEADER_KEY: json.dumps(spec)})
    old, new = load_aggregator(tmp_path / "old.safetensors"), load_aggregator(saved)
    assert (old.sizes, old.options) == (new.sizes, new.options)


def test_a_number_type_can_be_chosen(saved: Path):
    assert next(load_aggregator(saved, dtype=torch.bfloat16).parameters()).dtype == torch.bfloat16
    assert next(load_aggregator(saved).parameters()).dtype == torch.float32


def test_a_damaged_file_is_named(saved: Path, tmp_path: Path):
    file = tmp_path / "half.safetensors"
    file.write_bytes(saved.read_bytes()[:5000])
    with pytest.raises(
        ValueError, match=r"half.safetensors is not a readable safetensors file .*Copy or train it again"
    ):
        load_aggregator(file)


def test_a_file_of_something_else_is_refused(tmp_path: Path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "lora.safetensors")
    with pytest.raises(
        ValueError, match=r"lora.safetensors holds no aggregator: its header has no .*Give the file that"
    ):
        load_aggregator(tmp_path / "lora.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("at.0.conv_in.bias"), "the tensor 'at.0.conv_in.bias' is missing"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "the tensor 'extra' is unknown"),
        (
            lambda weights: weights.update({"at.24.conv_out.weight": torch.zeros(3, 16, 1, 1)}),
            r"'at.24.conv_out.weight' has the shape \(3, 16, 1, 1\), expected \(2, 16, 1, 1\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(change, message: str, saved: Path, tmp_path: Path):
    with safe_open(str(saved), framework="pt") as opened:
        metadata = opened.metadata()
    weights = load_file(saved)
    change(weights)
    save_file(weights, tmp_path / "changed.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=message):
        load_aggregator(tmp_path / "changed.safetensors")


def test_an_aggregator_outside_the_table_is_not_saved(tmp_path: Path):
    class Mine(Aggregator):
        pass

    with pytest.raises(ValueError, match=r"Mine is not in the table of aggregators. Add a row to diffusemble.registry"):
        save_aggregator(Mine(Sizes((4,), 8, 8, 2), AggregatorOptions()), tmp_path / "mine.safetensors")


def test_a_release_without_aggregators_is_refused(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"holds no aggregator_0, aggregator_1, \.\.\. folders\. Give the release's folder"
    ):
        load_published(tmp_path)


def test_a_release_that_contradicts_itself_is_refused(tmp_path: Path):
    folder = shutil.copytree(OFFICIAL, tmp_path / "official")
    config = folder / "aggregator_7" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": 64}))
    with pytest.raises(
        ValueError, match=r"aggregator_7: hidden_size is 64, but aggregator_0 has 32. All aggregators of"
    ):
        load_published(folder)


def test_a_release_with_a_gap_is_refused(tmp_path: Path):
    folder = shutil.copytree(OFFICIAL, tmp_path / "official")
    shutil.rmtree(folder / "aggregator_7")
    with pytest.raises(ValueError, match=r"holds aggregator_8 but no aggregator_7. Copy the whole release again"):
        load_published(folder)
