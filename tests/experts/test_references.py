from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusemble import EnsembleDenoiser, build_aggregator, load_experts
from ldm import save_ldm
from tiny import randomised, small_pipeline, small_unet


def ensemble_of(sources: list[Path], **options: Any) -> EnsembleDenoiser:
    experts = load_experts(sources, **options)
    torch.manual_seed(3)
    aggregator = build_aggregator("sabw", [expert.denoiser for expert in experts], width=32, heads=4, layers=1)
    return EnsembleDenoiser(experts, randomised(aggregator)).eval()


@torch.no_grad()
def prediction(ensemble: EnsembleDenoiser) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 5 * len(ensemble.experts), 32, generator=generator)
    return ensemble(sample, 7, text).sample


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    spec = json.loads((folder / "ensemble.json").read_text())
    change(spec)
    (folder / "ensemble.json").write_text(json.dumps(spec))


@pytest.fixture(scope="module")
def made(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the experts ``rock`` and ``fern``, a file ``opal`` and the ensemble of the three."""
    root = tmp_path_factory.mktemp("made") / "project"
    for name in ("rock", "fern"):
        shutil.copytree(models / name, root / "experts" / name)
    opal = save_ldm(small_pipeline(5), root / "experts/opal.safetensors", without=["vae"])
    ensemble_of([opal, root / "experts/rock", root / "experts/fern"]).save_pretrained(root / "ensemble")
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    """A copy of it, as ``project``."""
    return Path(shutil.copytree(made, tmp_path / "project"))


@pytest.mark.parametrize("names", [["rock"], ["rock", "fern", "moss", "rock"]], ids=["one", "four"])
def test_a_round_trip_gives_the_same_bits(names: list[str], models: Path, tmp_path: Path) -> None:
    ensemble = ensemble_of([models / name for name in names])
    ensemble.save_pretrained(tmp_path)
    again = EnsembleDenoiser.from_pretrained(tmp_path).eval()
    assert [expert.name for expert in again.experts] == [expert.name for expert in ensemble.experts]
    assert torch.equal(prediction(again), prediction(ensemble))


def test_only_the_aggregator_is_stored(models: Path, tmp_path: Path) -> None:
    ensemble = ensemble_of([models / "rock", models / "fern"])
    ensemble.save_pretrained(tmp_path / "deep/inside")
    assert {file.name for file in (tmp_path / "deep/inside").iterdir()} == {"ensemble.json", "aggregator.safetensors"}
    weights = sum(tensor.numel() for tensor in ensemble.aggregator.state_dict().values())
    assert (tmp_path / "deep/inside/aggregator.safetensors").stat().st_size < 4 * weights + 200_000
    spec = json.loads((tmp_path / "deep/inside/ensemble.json").read_text())
    assert spec["format"] == 1
    assert [reference["files"] for reference in spec["experts"]] == [dict(expert.files) for expert in ensemble.experts]
    assert [reference["source"] for reference in spec["experts"]] == [str(models / "rock"), str(models / "fern")]


def test_a_project_can_be_moved_with_its_experts(project: Path, tmp_path: Path) -> None:
    before = prediction(EnsembleDenoiser.from_pretrained(project / "ensemble").eval())
    spec = json.loads((project / "ensemble/ensemble.json").read_text())
    assert [(one["source"], one["base"]) for one in spec["experts"]] == [
        ("../experts/opal.safetensors", "../experts/rock"),
        ("../experts/rock", None),
        ("../experts/fern", None),
    ]
    moved = project.rename(tmp_path / "elsewhere")
    again = EnsembleDenoiser.from_pretrained(moved / "ensemble").eval()
    assert torch.equal(prediction(again), before)
    assert again.experts[0].components["vae"] is again.experts[1].components["vae"]


def test_experts_inside_the_ensemble_are_found_too(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "rock", tmp_path / "ensemble/rock")
    ensemble_of([tmp_path / "ensemble/rock"]).save_pretrained(tmp_path / "ensemble")
    assert json.loads((tmp_path / "ensemble/ensemble.json").read_text())["experts"][0]["source"] == "./rock"
    moved = (tmp_path / "ensemble").rename(tmp_path / "moved")
    assert EnsembleDenoiser.from_pretrained(moved).experts[0].name == "rock"


def test_a_missing_expert_is_named_and_can_be_found_elsewhere(project: Path) -> None:
    before = prediction(EnsembleDenoiser.from_pretrained(project / "ensemble").eval())
    (project / "experts/fern").rename(project / "lost")
    message = r"Expert 'fern' of .*ensemble: There is no file or folder .*experts/fern .*sources=\[...\]"
    with pytest.raises(ValueError, match=message):
        EnsembleDenoiser.from_pretrained(project / "ensemble")
    sources = [project / "experts/opal.safetensors", project / "experts/rock", project / "lost"]
    again = EnsembleDenoiser.from_pretrained(project / "ensemble", sources=sources).eval()
    assert again.experts[2].name == "fern"
    assert torch.equal(prediction(again), before)
    with pytest.raises(ValueError, match=r"has 3 experts \(opal, rock, fern\), but sources has 2 entries"):
        EnsembleDenoiser.from_pretrained(project / "ensemble", sources=sources[:2])


def test_a_changed_expert_is_named(project: Path) -> None:
    small_unet(9).save_pretrained(project / "experts/fern/unet")
    message = r"Expert 'fern' \(.*\): unet/diffusion_pytorch_model.safetensors has changed .*SHA-256 \w{12}\.\.\."
    with pytest.raises(ValueError, match=message):
        EnsembleDenoiser.from_pretrained(project / "ensemble")


def test_a_changed_base_is_named(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "rock", tmp_path / "rock")
    file = save_ldm(small_pipeline(5), tmp_path / "opal.safetensors", without=["text_encoder"])
    experts = load_experts(file, base=tmp_path / "rock")
    EnsembleDenoiser(experts).save_pretrained(tmp_path / "ensemble")
    shutil.copy(models / "fern/text_encoder/model.safetensors", tmp_path / "rock/text_encoder/model.safetensors")
    with pytest.raises(ValueError, match=r"Expert 'opal' .*: base:text_encoder/model.safetensors has changed"):
        EnsembleDenoiser.from_pretrained(tmp_path / "ensemble")


def test_a_file_that_is_no_longer_read_is_named(project: Path) -> None:
    edit(project / "ensemble", lambda spec: spec["experts"][1]["files"].update({"unet/second.safetensors": "00"}))
    with pytest.raises(ValueError, match=r"Expert 'rock' .*: the file unet/second.safetensors is missing"):
        EnsembleDenoiser.from_pretrained(project / "ensemble")


def test_another_format_or_folder_is_refused(project: Path, tmp_path: Path) -> None:
    edit(project / "ensemble", lambda spec: spec.update(format=4))
    with pytest.raises(ValueError, match=r"ensemble.json has format 4, but .* reads formats 1 to 3"):
        EnsembleDenoiser.from_pretrained(project / "ensemble")
    (project / "ensemble/ensemble.json").write_text("{")
    with pytest.raises(ValueError, match=r"ensemble.json is not readable JSON"):
        EnsembleDenoiser.from_pretrained(project / "ensemble")
    (project / "ensemble/aggregator.safetensors").unlink()
    with pytest.raises(ValueError, match=r"is not a saved ensemble: it has no aggregator.safetensors"):
        EnsembleDenoiser.from_pretrained(project / "ensemble")
    with pytest.raises(ValueError, match=r"nowhere is not a saved ensemble: it has no ensemble.json"):
        EnsembleDenoiser.from_pretrained(tmp_path / "nowhere")


def test_bare_denoisers_need_their_source(models: Path, tmp_path: Path) -> None:
    (expert,) = load_experts(models / "rock")
    EnsembleDenoiser([expert.denoiser]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"Expert 'expert 1' of .* was a bare denoiser without a source.*sources="):
        EnsembleDenoiser.from_pretrained(tmp_path)
    found = EnsembleDenoiser.from_pretrained(tmp_path, sources=[models / "rock"])
    assert torch.equal(prediction(found), prediction(EnsembleDenoiser([expert])))


def test_everything_comes_in_the_number_type_asked_for(project: Path) -> None:
    half = EnsembleDenoiser.from_pretrained(project / "ensemble", dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in half.parameters()} == {torch.bfloat16}
