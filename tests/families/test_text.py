"""Prompts spelled, read by every expert, and packed as one token."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from diffusemble.families.base import Family
from diffusemble.families.check import families_of
from diffusemble.families.text import (
    OutputTextEncoder,
    SpellingTokenizer,
    pack_conditions,
    text_parts,
    unpack_conditions,
)
from tests.families.parts import expert, other_tokenizer, stable, wider
from tests.tiny import as_expert, small_pipeline, small_unet

PROMPTS = ["", "a red fox", "Ω, 火 and 🦊\n"]


@cache
def families() -> tuple[Family, ...]:
    return families_of([stable(), wider(), expert("SDXL")])


def test_a_model_that_is_told_the_guidance_is_told_on_its_device() -> None:
    pipeline = small_pipeline(unet=small_unet(time_cond_proj_dim=8)).to("meta")
    (family,) = families_of([as_expert(pipeline)])
    for found in family.read_prompts(["a red fox"], torch.device("meta"), guided=True):
        assert {part.device.type for part in found.values()} == {"meta"}
        assert found["timestep_cond"].shape == (1, 8)


def test_spelling_loses_nothing() -> None:
    tokenizer = SpellingTokenizer()
    length = tokenizer.model_max_length
    spelled = tokenizer(PROMPTS, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    assert tokenizer.batch_decode(spelled.input_ids) == PROMPTS
    assert spelled.attention_mask.tolist() == [[1]] * 3
    assert tokenizer.batch_decode(tokenizer("one", return_tensors="pt").input_ids) == ["one"]
    assert tokenizer("ab").input_ids == [[97, 98]]
    assert tokenizer.tokenize("a <token>") == []


def test_conditions_come_back_as_they_were() -> None:
    conditions = [family.encode(PROMPTS, torch.device("cpu")) for family in families()]
    packed = pack_conditions(conditions)
    assert packed.shape[:2] == (3, 1)
    for found, given in zip(unpack_conditions(packed, families()), conditions, strict=True):
        assert found.keys() == given.keys()
        assert all(torch.equal(found[name], given[name]) for name in given)


def test_guidance_and_repeated_rows_survive() -> None:
    conditions = [family.encode(PROMPTS, torch.device("cpu")) for family in families()]
    packed = pack_conditions(conditions)
    both = torch.cat([packed, packed]).repeat(1, 2, 1).view(12, 1, -1)  # as pipelines do it
    found = unpack_conditions(both, families())[1]["encoder_hidden_states"]
    assert torch.equal(found[2:4], conditions[1]["encoder_hidden_states"][1].expand(2, -1, -1))


def test_an_empty_prompt_is_what_each_experts_own_pipeline_takes_for_none() -> None:
    stable_diffusion, _, xl = families()
    empty = xl.encode([""], torch.device("cpu"))
    assert not any(part.any() for part in empty.values())  # zeros, as SDXL's pipelines have it
    (given, _) = stable_diffusion.read_prompts([""], torch.device("cpu"), guided=False)
    assert torch.equal(
        stable_diffusion.encode([""], torch.device("cpu"))["encoder_hidden_states"], given["encoder_hidden_states"]
    )


def test_experts_that_share_an_encoder_read_once() -> None:
    one = stable()
    twins = families_of([one, replace(one, name="twin"), wider()])
    calls: list[int] = []
    handle = one.components["text_encoder"].register_forward_hook(lambda *_: calls.append(1))
    encoder = OutputTextEncoder(twins, "text_encoder")
    assert len(encoder.encoders) == 2
    encoder(SpellingTokenizer()(["a fox"], return_tensors="pt").input_ids)
    handle.remove()
    assert len(calls) == 1


def test_the_first_experts_pipeline_gets_a_part_for_each_of_its_own() -> None:
    parts = text_parts(families()[::-1])
    assert set(parts) == {
        *("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
        "force_zeros_for_empty_prompt",
    }
    assert parts["force_zeros_for_empty_prompt"] is False
    assert set(text_parts(families())) == {"text_encoder", "tokenizer"}


@pytest.mark.parametrize("shape", [(2, 77, 768), (1, 0, 5), (2, 1031)])
def test_what_was_not_packed_for_these_experts_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"texts of its 3 experts; got shape .* Give prompts, or what encode_prompt"):
        unpack_conditions(torch.zeros(shape), families())


def test_text_encoders_that_do_not_fit_the_denoiser_are_refused() -> None:
    narrow = wider()
    parts = {**narrow.components, "text_encoder": stable().components["text_encoder"], "tokenizer": other_tokenizer()}
    (family,) = families_of([replace(narrow, components=parts)])
    with pytest.raises(ValueError, match=r"'sd2'.*encoder_hidden_states of shape \[11, 40\].*give \[11, 32\]"):
        family.encode(["a fox"], torch.device("cpu"))
