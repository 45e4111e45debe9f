from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from diffusemble.aggregators.recording import AttentionMaps, record_attention
from diffusemble.app.cli import app
from diffusemble.config.generate import GenerateConfig
from diffusemble.drawing import draw
from diffusemble.ensembles.block_level import EnsembleDenoiser, build_aggregator
from diffusemble.ensembles.output_level import OutputEnsembleDenoiser
from diffusemble.evaluation.systems import Only
from diffusemble.experts.load import load_experts
from diffusemble.merging.blockwise import slots
from diffusemble.merging.export import export_weights, mean_weights
from diffusemble.merging.merged_expert import MergedExpert
from tests.ldm import save_ldm
from tests.tiny import as_expert, randomised, small_pipeline, tiny_pipeline, tiny_sdxl_pipeline
from tests.tiny_dit import tiny_flux_pipeline, tiny_sd3

CONFIG = GenerateConfig(prompts=("a fox",), seeds=(1,), steps=2, guidance=3.0, height=16, width=16)


def experts(count: int = 3, make=tiny_pipeline):
    return [as_expert(make(seed), str(seed)) for seed in range(count)]


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_sdxl_pipeline, tiny_flux_pipeline])
def test_an_ensemble_that_hears_one_expert_exports_that_expert_bit_for_bit(make):
    own = experts(2, make)
    sizes = EnsembleDenoiser(own).aggregator.sizes
    weights = export_weights(EnsembleDenoiser(own, Only(sizes, 1)), CONFIG)
    assert [set(one.values()) for one in weights] == [{0.0}, {1.0}]
    merged = MergedExpert(own, weights).expert
    encoders = [name for name in own[1].components if name.startswith("text_encoder")]
    pairs = [(merged.components[name], own[1].components[name]) for name in encoders]
    for mine, second in ((merged.denoiser, own[1].denoiser), *pairs):
        assert all(torch.equal(tensor, second.state_dict()[key]) for key, tensor in mine.state_dict().items())


@pytest.mark.parametrize("points", ["all", "last"])
def test_the_mean_exports_equal_shares_whatever_it_aggregates(points):
    own = experts()
    aggregator = build_aggregator("mean", [expert.denoiser for expert in own], points=points)
    for weights in export_weights(EnsembleDenoiser(own, aggregator), CONFIG):
        assert tuple(weights) == slots("sd1")
        assert list(weights.values()) == pytest.approx([1 / 3] * 26)


def test_a_slot_is_its_point_and_base_is_the_mean_of_all_points():
    own = experts()
    ensemble = EnsembleDenoiser(own, "sabw")
    ensemble.aggregator = randomised(ensemble.aggregator)
    weights = export_weights(ensemble, CONFIG)
    with record_attention(ensemble) as maps:
        draw(ensemble, CONFIG)
    means = torch.stack([torch.cat(maps[point]).double().mean(dim=(0, 2, 3)) for point in range(25)])
    assert means.std(dim=0).min() > 1e-3  # points differ
    for number, one in enumerate(weights):
        torch.testing.assert_close(torch.tensor(list(one.values())[1:], dtype=torch.float64), means[:, number])
        assert one["BASE"] == pytest.approx(means[:, number].mean().item())
    assert [sum(one[slot] for one in weights) for slot in slots("sd1")] == pytest.approx([1] * 26)


def test_flux_gets_what_its_blocks_tell():
    own = experts(2, tiny_flux_pipeline)
    ensemble = EnsembleDenoiser(own, "sabw")
    ensemble.aggregator = randomised(ensemble.aggregator)
    weights = export_weights(ensemble, CONFIG)[1]
    with record_attention(ensemble) as maps:
        draw(ensemble, CONFIG)
    means = [torch.cat(maps[point]).double()[:, 1].mean().item() for point in range(5)]
    assert max(means) - min(means) > 1e-4  # points differ
    read = {"IN": 0, "D00": 0, "D01": 1, "S00": 2, "S01": 3, "S02": 4, "OUT": 4}
    for slot in slots("flux"):
        expected = means[read[slot]] if slot in read else sum(means) / len(means)
        assert weights[slot] == pytest.approx(expected), slot


def test_experts_without_slots_are_refused_before_anything_is_drawn():
    bare = EnsembleDenoiser([tiny_sd3(0), tiny_sd3(1)])  # which cannot draw
    with pytest.raises(ValueError, match=r"this is SD 3\.5, whose blocks have no slots"):
        export_weights(bare, CONFIG)
    with pytest.raises(ValueError, match="meet only at their output, which tells nothing of blocks"):
        export_weights(OutputEnsembleDenoiser(experts(2, small_pipeline)), CONFIG)


def test_points_that_are_not_aggregated_get_the_mean_of_the_others():
    calls = ([torch.tensor([0.2, 0.8]).view(1, 2, 1, 1)], [], [torch.tensor([0.6, 0.4]).view(1, 2, 1, 1)])
    found = mean_weights(AttentionMaps(("a", "b", "c"), calls))
    torch.testing.assert_close(found, torch.tensor([[0.2, 0.8], [0.4, 0.6], [0.6, 0.4]], dtype=torch.float64))


def test_an_ensemble_without_maps_is_refused():
    with pytest.raises(ValueError, match="gave no maps, so there is nothing to export"):
        mean_weights(AttentionMaps(("a",), ([],)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An ensemble of single files."""
    folder = tmp_path_factory.mktemp("files")
    pipelines = [tiny_pipeline(seed) for seed in range(2)]
    files = [save_ldm(pipeline, folder / f"{n}.safetensors") for n, pipeline in enumerate(pipelines)]
    pipelines[0].save_pretrained(folder / "base")
    EnsembleDenoiser(load_experts(files, base=folder / "base")).save_pretrained(folder / "ensemble")
    return folder


def command(folder, *flags):
    drawn = ["--set", "steps=1", "--set", "guidance=1", "--set", "device=cpu"]
    return CliRunner().invoke(app, ["export", str(folder / "ensemble"), "a fox", *drawn, *map(str, flags)])


def test_the_command_writes_a_recipe_that_merges(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = command(saved, "--out", "new/recipe.yaml")
    assert result.exit_code == 0, result.output
    read = yaml.safe_load(Path("new/recipe.yaml").read_text())
    assert (read["experts"], read["out"]) == ([str(saved / f"{n}.safetensors") for n in range(2)], "merged.safetensors")
    assert read["blocks"] == [dict.fromkeys(slots("sd1"), 0.5)] * 2
    shown = next(line for line in result.output.splitlines() if line.startswith("merge:"))
    result = CliRunner().invoke(app, shlex.split(shown)[2:])
    assert result.exit_code == 0, result.output
    assert Path("merged.safetensors").is_file()


def test_what_could_not_be_merged_is_refused_before_anything_is_drawn(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusemble.merging.export.draw", lambda *_: pytest.fail("drew"))
    result = command(saved, "--merged", "best", "--out", tmp_path / "recipe.yaml")
    assert result.exit_code == 2
    assert "a file, NAME.safetensors; got best. Name it accordingly with --merged: best.safetensors" in result.output
    assert not (tmp_path / "recipe.yaml").exists()


def test_where_a_recipe_cannot_be_written_is_said_before_anything_is_loaded(tmp_path):
    result = command(tmp_path, "--out", tmp_path)
    assert result.exit_code == 2
    assert f"--out is a file; {tmp_path} is a folder" in result.output


def test_the_command_needs_something_to_draw():
    result = CliRunner().invoke(app, ["export", "zoo:topics"])
    assert result.exit_code == 2
    assert "there is no prompt" in result.output
