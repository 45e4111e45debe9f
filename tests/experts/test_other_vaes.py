"""Other VAEs on top of experts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from adapter_files import write
from diffusemble import load_experts
from diffusemble.experts.additions.vae import kinship
from ldm import save_ldm
from ldm import vae as ldm_vae
from tiny import small_pipeline, tiny_vae


def same(mine: Any, other: Any) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[key]) for key, tensor in mine.state_dict().items())


def test_a_vae_takes_the_place_of_the_experts_own(models: Path, tmp_path: Path) -> None:
    other = tiny_vae(7)
    other.save_pretrained(tmp_path / "kl")
    alone = write(ldm_vae(other), tmp_path / "alone.safetensors")
    diffusers = write(other.state_dict(), tmp_path / "diffusers.safetensors")
    whole = save_ldm(small_pipeline(3, vae=other), tmp_path / "whole.safetensors")
    other.save_pretrained(tmp_path / "half", variant="fp16")
    places = (tmp_path / "kl", tmp_path / "half", alone, diffusers, whole)
    experts = load_experts([*(f"{models / 'rock'}+vae={place}" for place in places), f"{models / 'rock'}+{alone}"])
    for place, expert in zip((*places, alone), experts, strict=True):
        assert same(expert.components["vae"], other)
        assert expert.components["vae"] is experts[0].components["vae"]
        assert any(name.endswith(place.name) for name in expert.files)


def test_a_vae_that_was_trained_apart_is_told(models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = tiny_vae()
    near = {key: tensor + 0.3 * tensor.std() * torch.randn_like(tensor) for key, tensor in own.state_dict().items()}
    near["encoder.conv_in.weight"] = near["encoder.conv_in.weight"] / 16  # as files are made that fit into float16
    load_experts(f"{models / 'rock'}+{write(near, tmp_path / 'near.safetensors')}")
    assert not caplog.messages
    load_experts(f"{models / 'rock'}+{write(ldm_vae(tiny_vae(5)), tmp_path / 'far.safetensors')}")
    (message,) = caplog.messages
    assert re.search(r"far.safetensors: this VAE and the model's own were trained apart .* is 0\.\d\d\)", message)
    assert kinship(own, own) == pytest.approx(1.0)
    assert kinship(own, tiny_vae(5, block_out_channels=(8, 24))) < 0.2  # of the layers that both have
    assert kinship(own, tiny_vae(5, block_out_channels=(12, 24))) == 1.0


def test_a_vae_can_be_that_of_an_expert(models: Path, tmp_path: Path) -> None:
    small_pipeline(4, vae=tiny_vae(9)).save_pretrained(tmp_path / "opal")
    rock, opal = load_experts([models / "rock", tmp_path / "opal"], vae="opal")
    assert rock.source == f"{models / 'rock'}+vae={tmp_path / 'opal'}"
    assert rock.components["vae"] is opal.components["vae"]
    assert same(rock.components["vae"], tiny_vae(9))


def test_a_vae_of_another_kind_is_refused(models: Path, tmp_path: Path) -> None:
    tiny_vae(scaling_factor=0.5).save_pretrained(tmp_path / "bright")
    with pytest.raises(
        ValueError, match=r"bright has scaling_factor 0.5, but the model's own has 0.18215. Give a VAE of"
    ):
        load_experts(models / "rock", vae=tmp_path / "bright")
    wide = write(ldm_vae(tiny_vae(block_out_channels=(8, 24))), tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match=r"The VAE in .*wide.safetensors is not built like the model's own: "):
        load_experts(models / "rock", vae=wide)
    none = save_ldm(small_pipeline(0), tmp_path / "none.safetensors", without=["vae"])
    with pytest.raises(
        ValueError, match=r"none.safetensors holds no VAE: it is an SD 1.x checkpoint. Give a VAE's file"
    ):
        load_experts(models / "rock", vae=none)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"nothing has no VAE: neither a folder vae nor a config.json"):
        load_experts(models / "rock", vae=tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"vae: there is no file or folder gone .* name of one of the experts: rock"):
        load_experts(models / "rock", vae="gone")
