"""Textual inversions and other VAEs on top of experts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from adapter_files import write
from diffusemble import EnsembleDenoiser, load_experts
from diffusemble.experts.additions.vae import kinship
from diffusemble.experts.folder import quiet
from families.parts import tiny_pixart_pipeline
from ldm import save_ldm
from ldm import vae as ldm_vae
from tiny import WIDTH, small_pipeline, small_unet, tiny_sdxl_pipeline, tiny_text_encoder, tiny_vae
from tiny_dit import tiny_flux_pipeline


def vectors(count: int, seed: int = 0, width: int = WIDTH) -> Tensor:
    return 0.3 * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``mossy`` has three vectors, ``plain`` one."""
    folder = tmp_path_factory.mktemp("words")
    write({"emb_params": vectors(3)}, folder / "mossy.safetensors")
    write({"emb_params": vectors(1, 5)}, folder / "plain.safetensors")
    return folder


def drawn(pipeline: Any, prompt: str, negative: str = "") -> np.ndarray[Any, Any]:
    generator = torch.Generator().manual_seed(3)
    pipeline.set_progress_bar_config(disable=True)
    return np.asarray(
        pipeline(
            prompt,
            negative_prompt=negative,
            num_inference_steps=2,
            height=16,
            width=16,
            output_type="np",
            generator=generator,
        ).images[0]
    )


def test_a_word_draws_what_it_draws_in_diffusers(models: Path, words: Path) -> None:
    theirs = StableDiffusionPipeline.from_pretrained(models / "rock")
    with quiet():
        theirs.load_textual_inversion(str(words / "mossy.safetensors"), token="mossy")
    (expert,) = load_experts(f"{models / 'rock'}+{words / 'mossy.safetensors'}")
    mine = EnsembleDenoiser([expert]).pipeline()
    assert np.array_equal(drawn(mine, "a mossy b"), drawn(theirs, "a mossy b"))
    assert not np.array_equal(drawn(mine, "a mossy b"), drawn(mine, "a b"))
    assert "+mossy.safetensors" in expert.files


def test_an_expert_without_the_word_reads_nothing_in_its_place(models: Path, words: Path) -> None:
    rock, fern, plain = load_experts(
        [f"{models / 'rock'}+{words / 'mossy.safetensors'}", models / "fern", models / "moss"]
    )
    assert len(rock.components["tokenizer"]) == len(fern.components["tokenizer"]) == len(plain.components["tokenizer"])
    EnsembleDenoiser([rock, fern])  # one vocabulary
    assert fern.components["text_encoder"] is plain.components["text_encoder"]
    alone = StableDiffusionPipeline.from_pretrained(models / "fern")
    taught = EnsembleDenoiser([fern]).pipeline()
    # As a negative prompt of its own the word is nothing at all: CLIP fills up an empty prompt with the same token.
    assert np.array_equal(drawn(taught, "a b", "mossy"), drawn(alone, "a b", ""))


def test_words_of_several_experts_are_known_to_all(models: Path, words: Path) -> None:
    sources = [f"{models / 'rock'}+{words / 'mossy.safetensors'}", f"{models / 'fern'}+{words / 'plain.safetensors'}"]
    rock, fern = load_experts(sources)
    added = [one.components["tokenizer"].get_added_vocab() for one in (rock, fern)]
    assert added[0] == added[1]
    assert [word for word in added[0] if not word.startswith("<")] == ["mossy", "mossy_1", "mossy_2", "plain"]
    place = added[0]["mossy_1"]
    mine, other = (one.components["text_encoder"].get_input_embeddings().weight for one in (rock, fern))
    assert torch.equal(mine[place], vectors(3)[1])
    assert torch.equal(other[place], other[fern.components["tokenizer"].eos_token_id])
    assert torch.equal(other[added[0]["plain"]], vectors(1, 5)[0])
    (alone,) = load_experts(models / "fern")
    with pytest.raises(ValueError, match=r"tokenizer vocabulary is .* with the same added words"):
        EnsembleDenoiser([rock, alone])


def test_a_word_is_a_word_and_not_a_part_of_one(models: Path, words: Path) -> None:
    (expert,) = load_experts(f"{models / 'rock'}+{words / 'plain.safetensors'}")
    tokenizer = expert.components["tokenizer"]
    number = tokenizer.get_added_vocab()["plain"]
    assert number in tokenizer("a plain b").input_ids
    assert number not in tokenizer("a plainer b").input_ids


def test_sdxl_has_vectors_for_both_encoders(tmp_path: Path) -> None:
    pipeline = tiny_sdxl_pipeline(0)
    # The published configuration says 2, which means "the largest number": it must not mean a new word.
    pipeline.text_encoder_2.config.eos_token_id = 2
    pipeline.save_pretrained(tmp_path / "base")
    file = write({"clip_l": vectors(2, 1), "clip_g": vectors(2, 2)}, tmp_path / "mossy.safetensors")
    expert, plain = load_experts([f"{tmp_path / 'base'}+{file}", tmp_path / "base"])
    for number, part in ((1, "text_encoder"), (2, "text_encoder_2")):
        weight = expert.components[part].get_input_embeddings().weight
        assert torch.equal(weight[-2:], vectors(2, number))
    tokenizer, encoder = expert.components["tokenizer_2"], expert.components["text_encoder_2"]
    ids = tokenizer("a mossy b", padding="max_length", return_tensors="pt").input_ids
    out = encoder(ids)
    end = int((ids[0] == tokenizer.eos_token_id).nonzero()[0])
    torch.testing.assert_close(out.text_embeds, encoder.text_projection(out.last_hidden_state[:, end]))
    assert len(plain.components["tokenizer_2"]) == len(tokenizer)


@pytest.mark.parametrize(
    ("tensors", "ending", "message"),
    [
        (
            {"emb_params": vectors(1, width=48)},
            "",
            r"has vectors of width 48, but the text_encoder of this model reads 32",
        ),
        (
            {"clip_l": vectors(1), "clip_g": vectors(1)},
            "",
            r"vectors for the text_encoder_2, but this model has no CLIP",
        ),
        ({"clip_l": vectors(1), "clip_g": vectors(2)}, "", r"has 1 and 2 vectors for the two text encoders"),
        ({"emb_params": vectors(1)}, ":0.5", r"is a textual inversion, which has no weight; got 0.5. Leave :0.5 out"),
        ({"<|endoftext|>": vectors(1)}, "", r"knows the word '<\|endoftext\|>' .* already. Rename the file"),
    ],
)
def test_words_that_do_not_fit_are_refused(
    models: Path, tmp_path: Path, tensors: dict[str, Tensor], ending: str, message: str
) -> None:
    file = write(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=message):
        load_experts(f"{models / 'rock'}+{file}{ending}")


def test_one_word_from_two_files_must_be_as_long(models: Path, words: Path, tmp_path: Path) -> None:
    other = write({"emb_params": vectors(2)}, tmp_path / "mossy.safetensors")
    sources = [f"{models / 'rock'}+{words / 'mossy.safetensors'}", f"{models / 'fern'}+{other}"]
    with pytest.raises(ValueError, match=r"both teach the word 'mossy', but with different numbers of vectors"):
        load_experts(sources)


def test_models_that_do_not_read_by_clip_alone_take_words_for_clip(tmp_path: Path) -> None:
    tiny_flux_pipeline(0).save_pretrained(tmp_path / "base")
    file = write({"clip_l": vectors(1), "clip_g": vectors(1)}, tmp_path / "mossy.safetensors")
    with pytest.raises(
        ValueError, match=r"vectors for the text_encoder_2, but this model has no CLIP text encoder there"
    ):
        load_experts(f"{tmp_path / 'base'}+{file}")


def test_an_expert_of_another_kind_beside_stays_as_it_is(models: Path, words: Path, tmp_path: Path) -> None:
    small_pipeline(
        1, unet=small_unet(1, cross_attention_dim=40), text_encoder=tiny_text_encoder(3, hidden_size=40)
    ).save_pretrained(tmp_path / "wide")
    rock, wide = load_experts([f"{models / 'rock'}+{words / 'plain.safetensors'}", tmp_path / "wide"])
    assert len(rock.components["tokenizer"]) == len(wide.components["tokenizer"])  # no vector of width 40 is needed
    pixart = tiny_pixart_pipeline()
    pixart.save_pretrained(tmp_path / "pixart")
    rock, other = load_experts([f"{models / 'rock'}+{words / 'plain.safetensors'}", tmp_path / "pixart"])
    assert len(other.components["tokenizer"]) == len(pixart.tokenizer)


# -- VAEs --------------------------------------------------------------------------------------------------------------


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
    assert re.search(r"far.safetensors: this VAE and the model's own were trained apart .* is -?0\.0\d\)", message)
    assert kinship(own, own) == pytest.approx(1.0)


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
    with pytest.raises(ValueError, match=r"There is no .safetensors file gone to add to .*rock"):
        load_experts(models / "rock", vae="gone")
