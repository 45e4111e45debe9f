"""Textual inversions on top of experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from adapter_files import write
from diffusemble import EnsembleDenoiser, load_experts
from diffusemble.experts.folder import quiet
from diffusemble.experts.inspection.folders import inspect
from families.parts import tiny_pixart_pipeline
from tiny import WIDTH, small_pipeline, small_unet, tiny_sdxl_pipeline, tiny_text_encoder
from tiny_dit import T5_WIDTH, tiny_chroma_pipeline, tiny_flux_pipeline, tiny_sd3_pipeline


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
        ({"t5": vectors(1)}, "", r"has vectors for the T5, but this model has no T5 text encoder there"),
        (
            {"t5xxl": vectors(1), "t5_out": vectors(1)},
            "",
            r"it is a textual inversion with vectors behind its text encoders. Behind a plus sign comes",
        ),
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


@pytest.mark.parametrize(
    ("build", "place", "keys"),
    [
        (tiny_flux_pipeline, "text_encoder_2", ("clip_l", "t5")),
        (tiny_sd3_pipeline, "text_encoder_3", ("clip_l", "clip_g", "t5xxl")),
        (tiny_chroma_pipeline, "text_encoder", ("t5",)),
    ],
)
def test_t5_reads_words_with_as_many_vectors_as_there_are(
    build: Any, place: str, keys: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = build(0)
    pipeline.save_pretrained(tmp_path / "base")
    given = {key: vectors(2 if key.startswith("t5") else 1, 3, T5_WIDTH if key[0] == "t" else WIDTH) for key in keys}
    file = write(given, tmp_path / "mossy.safetensors")
    taught, other = load_experts([f"{tmp_path / 'base'}+{file}", tmp_path / "base"])
    tokenizer, encoder = (
        taught.components[place.replace("text_encoder", name)] for name in ("tokenizer", "text_encoder")
    )
    ids = tokenizer("a mossy mossy_1 b", return_tensors="pt").input_ids
    plain = tokenizer("a b", return_tensors="pt").input_ids
    words = [tokenizer.get_added_vocab()[word] for word in ("mossy", "mossy_1")]
    assert ids[0].tolist() == [*plain[0, :2].tolist(), *words, *plain[0, 2:].tolist()]
    before = getattr(pipeline, place)
    rows = before.get_input_embeddings().weight
    inside = torch.cat([rows[plain[0, :2]], given[keys[-1]], rows[plain[0, 2:]]])
    expected = before(inputs_embeds=inside[None]).last_hidden_state
    torch.testing.assert_close(encoder(ids).last_hidden_state, expected)
    silent = other.components[place].get_input_embeddings().weight
    assert torch.equal(silent[words], silent[[tokenizer.pad_token_id] * 2])
    assert [taught.components[name].get_added_vocab() for name in taught.components if name.startswith("tok")] == [
        other.components[name].get_added_vocab() for name in taught.components if name.startswith("tok")
    ]
    if build is tiny_sd3_pipeline:
        assert "reads 'mossy' as the first of them. Write all of them into the prompt: mossy mossy_1" in caplog.text
    else:
        assert not caplog.messages
        mine = EnsembleDenoiser([taught]).pipeline()
        assert mine.maybe_convert_prompt("a mossy b", tokenizer) == "a mossy mossy_1 b"


def test_a_file_for_t5_is_told(tmp_path: Path) -> None:
    for keys, family in ((("t5",), ""), (("clip_l", "t5"), " for FLUX.1"), (("clip_g", "t5xxl"), " for SD 3.x")):
        file = write({key: vectors(3) for key in keys}, tmp_path / "mossy.safetensors")
        (report,) = inspect(file)
        assert (report.what, report.notes["word"]) == (f"textual inversion{family}", "mossy")
