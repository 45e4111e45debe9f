from __future__ import annotations

import pytest
import torch

from diffusemble import pack_text, unpack_text
from diffusemble.experts.text import PackedTextEncoder
from tiny import LENGTH, WIDTH, tiny_text_encoder, tiny_tokenizer

PROMPT = "a red fox"


def ids_of(prompts: str | list[str], length: int = LENGTH) -> torch.Tensor:
    tokenizer = tiny_tokenizer()
    return tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def packed(n: int, projection: bool = False) -> PackedTextEncoder:
    encoders = [tiny_text_encoder(seed, projection) for seed in range(n)]
    return PackedTextEncoder(encoders, LENGTH, tiny_tokenizer().eos_token_id)


def test_packing_is_undone_by_unpacking() -> None:
    for shape in ((2, 5, 7), (2, 7)):
        parts = [torch.randn(shape) for _ in range(3)]
        joined = pack_text(parts)
        assert joined.shape == (2, 3 * shape[1], *shape[2:])
        assert all(torch.equal(mine, part) for mine, part in zip(unpack_text(joined, 3), parts, strict=True))


def test_guidance_and_repetition_leave_packing_alone() -> None:
    negative, positive = ([torch.randn(2, 5, 7) for _ in range(3)] for _ in range(2))
    together = unpack_text(torch.cat([pack_text(negative), pack_text(positive)]), 3)
    for mine, low, high in zip(together, negative, positive, strict=True):
        assert torch.equal(mine, torch.cat([low, high]))
    # What pipelines do for several images per prompt.
    repeated = pack_text(positive).repeat(1, 4, 1).view(8, 15, 7)
    for mine, part in zip(unpack_text(repeated, 3), positive, strict=True):
        assert torch.equal(mine, part.repeat_interleave(4, dim=0))


@pytest.mark.parametrize("embeddings", [[], [torch.zeros(1, 5, 7), torch.zeros(1, 6, 7)], [torch.zeros(5)]])
def test_packing_refuses_what_does_not_fit(embeddings: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"pack_text needs one embedding per expert, all of one shape \[b s d\]"):
        pack_text(embeddings)


def test_unpacking_refuses_a_plain_embedding() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 77, 8\).*does not divide by the 3 experts.*pass pack_text"):
        unpack_text(torch.zeros(1, 77, 8), 3)


@pytest.mark.parametrize("projection", [False, True])
def test_every_output_holds_what_each_encoder_gives(projection: bool) -> None:
    encoder, ids = packed(3, projection), ids_of([PROMPT, "owl"])
    with torch.no_grad():
        together = encoder(ids, output_hidden_states=True)
        alone = [one(ids, output_hidden_states=True) for one in encoder.encoders]
    for number, output in enumerate(alone):
        # Pipelines read by position: SDXL its pooled embedding, SD the last state.
        assert torch.equal(unpack_text(together[0], 3)[number], output[0])
        assert torch.equal(unpack_text(together.last_hidden_state, 3)[number], output.last_hidden_state)
        for layer, states in enumerate(output.hidden_states):
            assert torch.equal(unpack_text(together.hidden_states[layer], 3)[number], states)
    assert together[0].ndim == alone[0][0].ndim


def test_the_final_norm_is_each_experts_own() -> None:
    encoder = packed(3)
    states = [torch.randn(2, LENGTH, WIDTH) for _ in range(3)]
    normed = unpack_text(encoder.text_model.final_layer_norm(pack_text(states)), 3)
    for number, one in enumerate(encoder.encoders):
        inner = getattr(one, "text_model", one)
        assert torch.equal(normed[number], inner.final_layer_norm(states[number]))


def test_an_encoder_shared_by_experts_runs_once() -> None:
    shared, calls = tiny_text_encoder(), []
    shared.register_forward_hook(lambda *_: calls.append(1))
    encoder = PackedTextEncoder([shared, shared, tiny_text_encoder(1)], LENGTH, tiny_tokenizer().eos_token_id)
    first, second, third = unpack_text(encoder(ids_of(PROMPT)).last_hidden_state, 3)
    assert len(calls) == 1
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("text", ["", "fox", "x" * (LENGTH - 3), "x" * (LENGTH - 2), "x" * (LENGTH - 1), "x" * 40])
def test_a_prompt_tokenized_to_the_packed_length_is_cut_as_one_prompt_is(text: str) -> None:
    encoder = packed(3)
    assert torch.equal(encoder._shorten(ids_of(text, 3 * LENGTH)), ids_of(text))
    assert torch.equal(encoder(ids_of(text, 3 * LENGTH)).last_hidden_state, encoder(ids_of(text)).last_hidden_state)


def test_a_batch_of_prompts_of_different_lengths_is_cut_one_by_one() -> None:
    texts = ["fox", "x" * 40, "y" * 14]
    assert torch.equal(packed(2)._shorten(ids_of(texts, 2 * LENGTH)), ids_of(texts))


def test_an_attention_mask_is_cut_with_the_prompt() -> None:
    encoder, ids = packed(2), ids_of(PROMPT)
    mask = (torch.arange(LENGTH) < 6).long()[None]
    long_mask = torch.cat([mask, torch.zeros(1, LENGTH, dtype=torch.long)], dim=1)
    longer = encoder(ids_of(PROMPT, 2 * LENGTH), attention_mask=long_mask).last_hidden_state
    assert torch.equal(longer, encoder(ids, attention_mask=mask).last_hidden_state)
