from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusemble import EnsembleDenoiser, load_experts, zoo
from diffusemble.experts.folder import quiet
from diffusemble.experts.sources import Source, parse_source
from ldm import save_ldm
from tiny import small_pipeline, tiny_sdxl_pipeline, tiny_vae


def copied(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "rock", tmp_path / "rock"))


def test_a_folder_gives_the_weights_and_their_checksums(models: Path) -> None:
    (expert,) = load_experts(models / "rock")
    stored = load_file(models / "rock/unet/diffusion_pytorch_model.safetensors")
    assert expert.denoiser.state_dict().keys() == stored.keys()
    assert all(torch.equal(tensor, stored[key]) for key, tensor in expert.denoiser.state_dict().items())
    assert (expert.name, expert.source, expert.base) == ("rock", str(models / "rock"), None)
    assert set(expert.files) == {
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }
    for file, checksum in expert.files.items():
        assert hashlib.sha256((models / "rock" / file).read_bytes()).hexdigest() == checksum


def test_equal_parts_are_kept_once(models: Path) -> None:
    rock, fern, moss = load_experts([models / name for name in ("rock", "fern", "moss")])
    assert rock.components["vae"] is fern.components["vae"] is moss.components["vae"]
    assert fern.components["text_encoder"] is moss.components["text_encoder"]
    assert rock.components["text_encoder"] is not fern.components["text_encoder"]
    assert fern.denoiser is not moss.denoiser


def test_parts_with_equal_weights_that_compute_differently_stay_apart(models: Path, tmp_path: Path) -> None:
    folder = copied(models, tmp_path)
    config = json.loads((folder / "text_encoder/config.json").read_text())
    (folder / "text_encoder/config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))
    one, other = load_experts([models / "rock", folder])
    assert one.components["text_encoder"] is not other.components["text_encoder"]


def test_names_are_those_of_the_folders_and_stay_unique(models: Path) -> None:
    experts = load_experts([models / "rock", models / "fern", models / "rock"])
    assert [expert.name for expert in experts] == ["rock", "fern", "rock 2"]
    assert [e.name for e in load_experts([models / "rock", models / "fern"], names=["a", "b"])] == ["a", "b"]
    with pytest.raises(ValueError, match=r"got 1 names \(a\) for 2 experts .*Give 2 names, or none"):
        load_experts([models / "rock", models / "fern"], names=["a"])
    with pytest.raises(ValueError, match="Two experts are called 'a'"):
        load_experts([models / "rock", models / "fern"], names=["a", "a"])


def test_weights_come_in_float32_unless_asked_otherwise(models: Path, tmp_path: Path) -> None:
    small_pipeline().to(torch.float16).save_pretrained(tmp_path / "half")
    for dtype in (None, torch.float32, torch.float16):
        (expert,) = load_experts(tmp_path / "half", dtype=dtype)
        for part in (expert.denoiser, expert.components["vae"], expert.components["text_encoder"]):
            assert {tensor.dtype for tensor in part.parameters()} == {dtype or torch.float32}


def test_number_types_are_those_of_torch(models: Path) -> None:
    with pytest.raises(ValueError, match=r"dtype must be one of torch's number types, .*; got 'float16'"):
        load_experts(models / "rock", dtype="float16")  # type: ignore[arg-type]


def test_a_folder_that_has_only_half_precision_files_opens(tmp_path: Path) -> None:
    small_pipeline().to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    (expert,) = load_experts(tmp_path)
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in expert.files


def test_sharded_weights_are_all_checked(tmp_path: Path) -> None:
    pipeline = small_pipeline()
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").unlink()
    pipeline.unet.save_pretrained(tmp_path / "unet", max_shard_size="100KB")
    (expert,) = load_experts(tmp_path)
    assert sum(file.startswith("unet/") for file in expert.files) == 3
    assert torch.equal(expert.denoiser.conv_out.weight, pipeline.unet.conv_out.weight)


def test_an_sdxl_folder_keeps_the_settings_of_its_pipeline(tmp_path: Path) -> None:
    pipeline = tiny_sdxl_pipeline(force_zeros_for_empty_prompt=False)
    pipeline.save_pretrained(tmp_path)
    experts = load_experts([tmp_path, tmp_path])
    assert experts[0].components["force_zeros_for_empty_prompt"] is False
    assert EnsembleDenoiser(experts).pipeline().config.force_zeros_for_empty_prompt is False


@pytest.fixture
def tiny_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A zoo of tiny models in the place of the shipped one."""
    base = small_pipeline().to(torch.float16)
    base.save_pretrained(tmp_path / "weights/base")
    for number, name in enumerate(zoo.names()[1:], start=1):
        delta = {"conv_in.bias": base.unet.conv_in.bias + number}
        (tmp_path / "weights/experts" / name).mkdir(parents=True)
        save_file(delta, tmp_path / f"weights/experts/{name}/unet.safetensors")
    monkeypatch.setattr("diffusemble.zoo.experts.WEIGHTS", tmp_path / "weights")
    monkeypatch.setenv("DIFFUSEMBLE_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("tiny_zoo")
def test_the_zoo_gives_one_expert_or_a_group() -> None:
    group = load_experts("zoo:topics")
    (alone,) = load_experts("zoo:animals")
    assert [expert.name for expert in group] == ["people", "animals", "things"]
    assert alone.source == "zoo:animals"
    assert alone.files == group[1].files == {"weights": zoo.fingerprint("animals")}
    assert len({expert.files["weights"] for expert in group}) == 3
    assert group[0].components["vae"] is group[2].components["vae"]
    assert not torch.equal(group[0].denoiser.conv_in.bias, group[1].denoiser.conv_in.bias)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub without a network: only what lies in its cache folder, an empty one."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fill_cache(hub: Path, model: Path) -> None:
    entry = hub / f"models--quarry--{model.name}"
    shutil.copytree(model, entry / "snapshots" / COMMIT)
    (entry / "refs").mkdir()
    (entry / "refs/main").write_text(COMMIT)


def test_a_hub_repository_is_pinned_to_its_commit(models: Path, offline: Path) -> None:
    fill_cache(offline, models / "rock")
    (latest,) = load_experts("quarry/rock")
    (local,) = load_experts(models / "rock")
    assert (latest.name, latest.source) == ("rock", f"quarry/rock@{COMMIT}")
    assert latest.files == local.files
    assert load_experts(latest.source)[0].source == latest.source


def test_a_hub_repository_completes_a_file(models: Path, offline: Path, tmp_path: Path) -> None:
    fill_cache(offline, models / "rock")
    pipeline = small_pipeline(4)
    (expert,) = load_experts(save_ldm(pipeline, tmp_path / "a.safetensors", without=["vae"]), base="quarry/rock")
    assert expert.base == f"quarry/rock@{COMMIT}"
    assert torch.equal(expert.denoiser.conv_out.weight, pipeline.unet.conv_out.weight)


def test_a_vae_can_come_from_the_hub(models: Path, offline: Path) -> None:
    fill_cache(offline, models / "rock")
    tiny_vae(3).save_pretrained(offline / "models--quarry--kl/snapshots" / COMMIT)
    (offline / "models--quarry--kl/refs").mkdir()
    (offline / "models--quarry--kl/refs/main").write_text(COMMIT)
    (expert,) = load_experts(models / "fern", vae="quarry/kl")
    assert torch.equal(expert.components["vae"].decoder.conv_in.weight, tiny_vae(3).decoder.conv_in.weight)
    two = load_experts(["quarry/rock", models / "fern"], vae="rock")
    assert two[1].components["vae"] is two[0].components["vae"]
    with pytest.raises(ValueError, match="The VAE quarry/gone is not a local path, and no repository with a VAE"):
        load_experts(models / "fern", vae="quarry/gone")


@pytest.mark.usefixtures("offline")
def test_an_unreachable_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"quarry/rock@v1 is not a local path, and no repository.*Check the spelling"):
        load_experts("quarry/rock@v1")
    file = save_ldm(small_pipeline(), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="quarry/rock is not a local path"):
        load_experts(file, base="quarry/rock")


def test_loading_prints_nothing(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_experts(models / "rock")
    assert capfd.readouterr() == ("", "")


def test_quiet_restores_what_it_switched_off() -> None:
    from diffusers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with quiet():
        assert not logging.is_progress_bar_enabled()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize(
    ("given", "source"),
    [
        ("org/name", Source("hub", "org/name")),
        ("org/na.me-1@v1.0", Source("hub", "org/na.me-1", "v1.0")),
        ("zoo:base", Source("zoo", "base")),
    ],
)
def test_sources_read_back_as_written(given: str, source: Source) -> None:
    assert parse_source(given) == (source,)
    assert str(source) == given
