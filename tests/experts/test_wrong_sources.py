from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffusemble import load_experts
from diffusemble.experts.folder import first_sentence
from diffusemble.experts.inspection.folders import inspect
from diffusemble.experts.sources import Source, parse_source
from ldm import save_ldm
from tiny import small_pipeline


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


@pytest.mark.parametrize("given", ["models/foto", "modles/photo", "photo"])
def test_a_misspelt_path_is_named_with_what_lies_there(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models/photo").mkdir(parents=True)
    (tmp_path / "photo.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    near = {"models/foto": "photo", "modles/photo": "models", "photo": r"photo\.safetensors"}[given]
    with pytest.raises(ValueError, match=rf"{given} .*\(did you mean '{near}'\?\)"):
        load_experts(given)
    assert re.search(rf"did you mean '{near}'\?", str(next(inspect(given)).problem))


def test_where_a_folder_of_the_first_name_is_here_no_hub_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models/photo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the hub was asked"))
    message = r"There is no file or folder models/foto .*\(a hub repository of this name: models/foto@main\)"
    with pytest.raises(ValueError, match=message):
        load_experts("models/foto")
    with pytest.raises(ValueError, match=r"no .safetensors file models/foto to add to zoo:people .*mean 'photo'"):
        load_experts("zoo:people+vae=models/foto")
    assert parse_source("models/foto@main") == (Source("hub", "models/foto", "main"),)


def test_no_source_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one source; got none"):
        load_experts([])


def test_what_the_hub_says_is_cut_outside_parentheses() -> None:
    said = "Cannot load model models/mising: it is not cached (No snapshot here. To enable downloads, go online)."
    assert first_sentence(OSError(said)) == "Cannot load model models/mising: it is not cached"
    assert first_sentence(OSError("No file (in a cache). Go online.")) == "No file (in a cache)"
    assert first_sentence(OSError("(a. b)")) == "OSError"


def test_a_pickle_is_refused_although_it_exists(tmp_path: Path) -> None:
    file = tmp_path / "rock.ckpt"
    torch.save({}, file)
    with pytest.raises(ValueError, match=r"rock\.ckpt is a pickle in a zip.*\.safetensors version"):
        load_experts(file)


@pytest.mark.parametrize("name", ["rock.ckpt", "rock.sft", "Rock.SAFETENSORS"])
def test_a_safetensors_file_under_another_name_is_to_be_renamed(name: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / name)
    message = rf"{name} is a safetensors file under another name. Rename it to [rR]ock.safetensors"
    with pytest.raises(ValueError, match=message):
        load_experts(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        load_experts(f"zoo:people+{tmp_path / name}")
    assert "Rename it" in str(next(inspect(tmp_path / name)).problem)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rock.yaml").write_text("a: 1")
    with pytest.raises(ValueError, match=r"rock\.yaml is a \.yaml file, but models are"):
        load_experts(tmp_path / "rock.yaml")


def test_a_folder_that_is_no_model_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not a diffusers model: that has a model_index.json, but it is empty"):
        load_experts(tmp_path)
    (tmp_path / "rock.safetensors").touch()
    with pytest.raises(ValueError, match=r"it holds rock.safetensors. Give the file .*rock.safetensors itself"):
        load_experts(tmp_path)


def test_a_saved_ensemble_and_a_part_of_a_model_are_told_from_a_folder_of_files(models: Path, tmp_path: Path) -> None:
    for name in ("ensemble.json", "aggregator.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"is a saved ensemble, .* --ensemble {tmp_path}, in a config"):
        load_experts(tmp_path)
    with pytest.raises(ValueError, match=r"rock/unet is a part of the model .*rock. Give .*rock itself"):
        load_experts(models / "rock/unet")


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


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("vae/config.json", r"rock cannot be opened \(.*Copy or download the folder again"),
        (
            "tokenizer/tokenizer.json",
            r"lacks its tokenizer: there is no vocab.json or tokenizer.json or \*.model in ",
        ),
        ("text_encoder/config.json", r"lacks its text_encoder: there is no config.json in .*text_encoder. Copy"),
        ("unet/config.json", r"rock cannot be opened \(.*config.json"),
    ],
)
def test_a_folder_that_lacks_a_part_is_named(gone: str, message: str, models: Path, tmp_path: Path) -> None:
    folder = copied(models, tmp_path)
    (folder / gone).unlink()
    with pytest.raises(ValueError, match=message):
        load_experts(folder)


def test_a_damaged_list_of_shards_is_named(models: Path, tmp_path: Path) -> None:
    folder = copied(models, tmp_path)
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    listed = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    listed.write_text("{")
    with pytest.raises(ValueError, match=r"model.safetensors.index.json is not readable JSON .*download the folder"):
        load_experts(folder)
    listed.write_text("[]")
    with pytest.raises(ValueError, match="should hold a JSON object, but holds a list"):
        load_experts(folder)


def test_a_base_without_a_readable_configuration_is_named(models: Path, tmp_path: Path) -> None:
    folder = copied(models, tmp_path)
    file = save_ldm(small_pipeline(5), tmp_path / "opal.safetensors")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": ["rocks", "RockModel"]}))
    with pytest.raises(ValueError, match=r"rock needs the class 'RockModel' of 'rocks', which is not known here"):
        load_experts(file, base=folder)
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "text_encoder/config.json").unlink()
    with pytest.raises(ValueError, match=r"rock has no readable configuration of its text_encoder .*config.json"):
        load_experts(file, base=folder)
    (folder / "unet/config.json").write_text("{")
    with pytest.raises(ValueError, match=r"rock has no readable configuration of its unet \("):
        load_experts(file, base=folder)
