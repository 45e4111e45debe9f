from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.experts.expert import Expert
from diffusemble.experts.text import pack_text
from diffusemble.training.config import DataConfig, TrainConfig
from diffusemble.training.corpus import Corpus, encode_corpus
from diffusemble.training.images import read_square
from training.small import small_config


def encode(experts: Any, config: TrainConfig) -> Corpus:
    return encode_corpus(config.data, config, EnsembleDenoiser(experts), lambda *_: None)


@pytest.fixture
def copy(pictures: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pictures, tmp_path / "pictures"))


def test_latents_are_scaled_means_of_the_vae(experts: tuple[Expert, ...], pictures: Path, tmp_path: Path) -> None:
    corpus = encode(experts, small_config(pictures, tmp_path))
    square = read_square((pictures / "3.png").read_bytes(), 16, "center", torch.Generator()).pixels
    vae = experts[0].components["vae"]
    with torch.no_grad():
        expected = vae.encode(square[None]).latent_dist.mean * vae.config.scaling_factor
    assert len(corpus) == 10
    assert torch.allclose(corpus.latents[[3]], expected, atol=1e-5)


def test_text_is_every_experts_own_and_dropped_prompts_are_the_empty_one(
    experts: tuple[Expert, ...], pictures: Path, tmp_path: Path
) -> None:
    corpus = encode(experts, small_config(pictures, tmp_path))
    given = corpus.inputs(torch.tensor([2, 7, 9]), torch.tensor([False, True, False]))["encoder_hidden_states"]
    for row, caption in enumerate(["picture 2", "", "picture 9"]):
        own = []
        for expert in experts:
            tokens = expert.components["tokenizer"](caption, padding="max_length", return_tensors="pt").input_ids
            with torch.no_grad():
                own.append(expert.components["text_encoder"](tokens).last_hidden_state)
        assert torch.allclose(given[row], pack_text(own)[0], atol=1e-5)


def test_nothing_is_encoded_twice(experts: tuple[Expert, ...], copy: Path, tmp_path: Path) -> None:
    config = small_config(copy, tmp_path)
    first = encode(experts, config)
    times = {file: file.stat().st_mtime_ns for file in config.cache_folder.rglob("*")}
    second = encode(experts, config)
    assert {file: file.stat().st_mtime_ns for file in config.cache_folder.rglob("*")} == times
    everything = list(range(10))
    assert torch.equal(first.latents[everything], second.latents[everything])
    encode(experts, small_config(copy, tmp_path, size=8))
    encode(experts, small_config(copy, tmp_path, crop="random"))
    assert len(list(config.cache_folder.glob("latents-*"))) == 3
    assert len(list(config.cache_folder.glob("text-*"))) == 1


def test_encoding_goes_on_after_the_last_whole_shard(
    experts: tuple[Expert, ...], copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusemble.training.corpus.SHARD", 4)
    config = small_config(copy, tmp_path)

    def stop(stage: str, done: int, total: int | None) -> None:
        assert (stage, total) == ("pictures", 10)
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_corpus(config.data, config, EnsembleDenoiser(experts), stop)
    (shelf,) = config.cache_folder.glob("latents-*")
    written = {file.name: file.stat().st_mtime_ns for file in shelf.iterdir()}
    assert set(written) == {"00000.safetensors", "00001.safetensors"}
    corpus = encode(experts, config)
    assert len(corpus) == 10
    assert {name: (shelf / name).stat().st_mtime_ns for name in written} == written


def test_unreadable_pictures_are_skipped_with_their_captions_and_named(
    experts: tuple[Expert, ...], copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = encode(experts, small_config(copy, tmp_path))
    (copy / "2.png").write_bytes(b"no picture")
    (copy / "5.png").unlink()
    corpus = encode(experts, small_config(copy, tmp_path))
    assert len(corpus) == 8
    assert f"Skipped {copy / '2.png'}: cannot identify image file" in caplog.text
    assert f"Skipped {copy / '5.png'}: " in caplog.text
    assert "2 of the pictures could not be read and are left out" in caplog.text
    kept, now = torch.tensor([0, 1, 3, 4, 6, 7, 8, 9]), torch.arange(8)
    assert torch.allclose(corpus.latents[now.tolist()], whole.latents[kept.tolist()], atol=1e-5)
    none = torch.zeros(8, dtype=torch.bool)
    name = "encoder_hidden_states"
    assert torch.allclose(corpus.inputs(now, none)[name], whole.inputs(kept, none)[name], atol=1e-5)


def test_data_without_one_readable_picture_are_an_error(
    experts: tuple[Expert, ...], copy: Path, tmp_path: Path
) -> None:
    for file in copy.glob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"None of the 10 pictures of the data could be read, the first being .*0.png"):
        encode(experts, small_config(copy, tmp_path))


def test_bare_denoisers_cannot_encode(experts: tuple[Expert, ...], pictures: Path, tmp_path: Path) -> None:
    bare = [replace(expert, components={}) for expert in experts]
    with pytest.raises(ValueError, match="A pipeline needs text encoders and a VAE"):
        encode(bare, small_config(pictures, tmp_path))


def test_webdataset_shards_become_the_same_corpus(experts: tuple[Expert, ...], pictures: Path, tmp_path: Path) -> None:
    import tarfile

    (tmp_path / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "shards" / f"{shard}.tar", "w") as archive:
            for number in range(5 * shard, 5 * shard + 5):
                archive.add(pictures / f"{number}.png", f"{number:03d}.png")
                caption = tmp_path / "caption.txt"
                caption.write_text(f"picture {number}")
                archive.add(caption, f"{number:03d}.txt")
    config = small_config(pictures, tmp_path, cache=tmp_path / "cache")
    shards = DataConfig(path=str(tmp_path / "shards"), kind="webdataset")
    one, other = encode(experts, config), encode(experts, config.model_copy(update={"data": (shards,)}))
    assert torch.equal(one.latents[range(10)], other.latents[range(10)])
    assert len(list(config.cache_folder.glob("text-*"))) == 1  # equal captions: encoded once


def test_several_sets_make_one_corpus(experts: tuple[Expert, ...], pictures: Path, tmp_path: Path) -> None:
    rows = (pictures / "metadata.jsonl").read_text().splitlines()
    (tmp_path / "list.jsonl").write_text("\n".join(rows[3:5]))
    both = [
        {"path": str(pictures), "where": {"split": ["held", "other"]}},
        {"path": str(tmp_path / "list.jsonl"), "kind": "list", "root": str(pictures), "where": {"split": "train"}},
    ]
    config, reported = small_config(pictures, tmp_path), list[tuple[str, int, int | None]]()
    ensemble, data = EnsembleDenoiser(experts), [DataConfig.model_validate(one) for one in both]
    whole = encode_corpus([DataConfig(path=str(pictures))], config, ensemble, lambda *_: None)
    corpus = encode_corpus(data, config, ensemble, lambda *told: reported.append(told))
    assert reported == [("pictures", 6, 6), ("captions", 6, 6)]
    chosen = [10, 11, 12, 13, 3, 4]
    assert torch.allclose(corpus.latents[range(6)], whole.latents[chosen], atol=1e-5)
    none, name = torch.zeros(6, dtype=torch.bool), "encoder_hidden_states"
    expected = whole.inputs(torch.tensor(chosen), none)[name]
    assert torch.allclose(corpus.inputs(torch.arange(6), none)[name], expected, atol=1e-5)


def test_noise_pictures_differ(pictures: Path) -> None:
    """The fixtures above would hide a mix-up if their pictures were alike."""
    assert (np.asarray(Image.open(pictures / "0.png")) != np.asarray(Image.open(pictures / "1.png"))).mean() > 0.9
