from __future__ import annotations

import pytest
import torch
import yaml
from typer.testing import CliRunner

from diffusemble.aggregators.recording import AttentionMaps, record_attention
from diffusemble.app.cli import app
from diffusemble.config.generate import GenerateConfig
from diffusemble.drawing import draw
from diffusemble.ensembles.block_level import EnsembleDenoiser, build_aggregator
from diffusemble.evaluation.systems import Only
from diffusemble.experts.load import load_experts
from diffusemble.merging.blockwise import slots
from diffusemble.merging.export import export_weights, mean_weights
from diffusemble.merging.merged_expert import MergedExpert
from tests.tiny import as_expert, randomised, tiny_pipeline, tiny_sdxl_pipeline

CONFIG = GenerateConfig(prompts=("a fox",), seeds=(1,), steps=2, guidance=3.0, height=16, width=16)


def experts(count: int = 3, make=tiny_pipeline):
    return [as_expert(make(seed), str(seed)) for seed in range(count)]


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_sdxl_pipeline])
def test_an_ensemble_that_hears_one_expert_exports_that_expert_bit_for_bit(make):
    own = experts(2, make)
    sizes = EnsembleDenoiser(own).aggregator.sizes
    weights = export_weights(EnsembleDenoiser(own, Only(sizes, 1)), CONFIG)
    assert [set(one.values()) for one in weights] == [{0.0}, {1.0}]
    merged = MergedExpert(own, weights).expert
    for mine, second in (
        (merged.denoiser, own[1].denoiser),
        (merged.components["text_encoder"], own[1].components["text_encoder"]),
    ):
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


def test_points_that_are_not_aggregated_get_the_mean_of_the_others():
    calls = ([torch.tensor([0.2, 0.8]).view(1, 2, 1, 1)], [], [torch.tensor([0.6, 0.4]).view(1, 2, 1, 1)])
    found = mean_weights(AttentionMaps(("a", "b", "c"), calls))
    torch.testing.assert_close(found, torch.tensor([[0.2, 0.8], [0.4, 0.6], [0.6, 0.4]], dtype=torch.float64))


def test_an_ensemble_without_maps_is_refused():
    with pytest.raises(ValueError, match="gave no maps, so there is nothing to export"):
        mean_weights(AttentionMaps(("a",), ([],)))


def test_the_command_writes_a_recipe(tmp_path):
    for seed in range(2):
        tiny_pipeline(seed).save_pretrained(tmp_path / f"expert{seed}")
    own = load_experts([tmp_path / "expert0", tmp_path / "expert1"])
    EnsembleDenoiser(own).save_pretrained(tmp_path / "ensemble")
    out = tmp_path / "recipe.yaml"
    flags = ["--out", str(out), "--merged", "models/one", "--set", "steps=1", "--set", "device=cpu"]
    result = CliRunner().invoke(app, ["export", str(tmp_path / "ensemble"), "a fox", *flags])
    assert result.exit_code == 0, result.output
    assert "diffusemble merge --config" in result.output
    read = yaml.safe_load(out.read_text())
    assert (read["experts"], read["out"]) == ([expert.source for expert in own], "models/one")
    assert read["blocks"] == [dict.fromkeys(slots("sd1"), 0.5)] * 2


def test_the_command_needs_something_to_draw():
    result = CliRunner().invoke(app, ["export", "zoo:topics"])
    assert result.exit_code == 2
    assert "there is no prompt" in result.output
