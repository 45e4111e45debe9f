from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from diffusemble import load_experts


def copied(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "rock", tmp_path / "rock"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere/to/be/found", r"no file or folder nowhere/to/be/found \(looked in .*Check the path"),
        ("./nowhere", r"no file or folder \./nowhere"),
        ("gone.safetensors", r"no file or folder gone\.safetensors"),
        (Path("org/name"), "no file or folder org/name"),
        ("model.ckpt", r"model\.ckpt is a pickle file, and opening one can run any program"),
        ("org/model.pth", "is a pickle file"),
        ("https://example.org/org/name", "is a web address.*Give the repository's id, or download the file"),
        (
            "zoo:dragons",
            "no model or group 'dragons'. Its groups are: topics, styles.*; its models are: base, people",
        ),
        ("", "A source of experts is a diffusers folder, a hub id"),
        (3, "A source of experts is .*; got 3"),
    ],
)
def test_a_wrong_source_is_named(given: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_experts([given])


def test_no_source_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one source; got none"):
        load_experts([])


def test_a_pickle_is_refused_although_it_exists(tmp_path: Path) -> None:
    file = tmp_path / "rock.ckpt"
    torch.save({}, file)
    with pytest.raises(ValueError, match=r"rock\.ckpt is a pickle file.*\.safetensors version"):
        load_experts(file)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rock.yaml").write_text("a: 1")
    with pytest.raises(ValueError, match=r"rock\.yaml is a \.yaml file, but a source is"):
        load_experts(tmp_path / "rock.yaml")


def test_a_folder_that_is_no_model_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not a diffusers model: that has a model_index.json, but it is empty"):
        load_experts(tmp_path)
    (tmp_path / "rock.safetensors").touch()
    with pytest.raises(ValueError, match=r"it holds rock.safetensors. Give the file .*rock.safetensors itself"):
        load_experts(tmp_path)


def test_a_folder_with_a_damaged_index_is_named(models: Path, tmp_path: Path) -> None:
    folder = copied(models, tmp_path)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"rock/model_index.json is not readable JSON"):
        load_experts(folder)


def test_a_folder_without_a_denoiser_is_refused(models: Path, tmp_path: Path) -> None:
    folder = copied(models, tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": [None, None]}))
    with pytest.raises(ValueError, match="StableDiffusionPipeline without a denoiser"):
        load_experts(folder)


def test_a_pipeline_class_that_diffusers_does_not_have_is_refused(models: Path, tmp_path: Path) -> None:
    folder = copied(models, tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "RockPipeline"}))
    with pytest.raises(ValueError, match="needs the pipeline class 'RockPipeline'"):
        load_experts(folder)


def test_missing_pickled_and_damaged_weights_are_named(models: Path, tmp_path: Path) -> None:
    folder = copied(models, tmp_path)
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"rock/unet/diffusion_pytorch_model.safetensors is cut off: it has"):
        load_experts(folder)
    file.unlink()
    with pytest.raises(ValueError, match=r"rock/unet has no weights; experts are read from \.safetensors files"):
        load_experts(folder)
    file.with_suffix(".bin").touch()
    with pytest.raises(ValueError, match=r"rock/unet has only pickle files \(\.bin\).*safe_serialization=True"):
        load_experts(folder)


def test_a_folder_that_lacks_a_part_is_named(models: Path, tmp_path: Path) -> None:
    folder = copied(models, tmp_path)
    shutil.rmtree(folder / "vae")
    with pytest.raises(ValueError, match=r"rock cannot be opened \(.*Copy or download the folder again"):
        load_experts(folder)
