"""Every expert's own text encoders in a pipeline around an ensemble."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionGLIGENPipeline

from diffusemble import pack_text
from stock import small_pipeline, small_sdxl, small_unet
from tiny import as_expert, tiny_text_encoder
from tiny_dit import tiny_chroma_pipeline, tiny_sd3_pipeline
from tiny_ensembles import NEGATIVE, PROMPT, SMALL, N, copies, different, draw, unlike


def test_every_expert_reads_the_prompt_with_its_own_encoder() -> None:
    whole = [small_pipeline(seed) for seed in range(N)]
    ensemble = different(whole)
    pipeline = ensemble.pipeline()
    positive, negative = pipeline.encode_prompt(PROMPT, "cpu", 2, True, NEGATIVE)
    for packed, place in ((positive, 0), (negative, 1)):
        assert packed.shape == (2, N * 16, 32)
        for mine, one in zip(packed.chunk(N, dim=1), whole, strict=True):
            assert torch.equal(mine, one.encode_prompt(PROMPT, "cpu", 2, True, NEGATIVE)[place])
    # The same embeddings, given by hand.
    given = [one.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE) for one in whole]
    by_hand = draw(
        pipeline,
        prompt=None,
        negative_prompt=None,
        prompt_embeds=pack_text([one[0] for one in given]),
        negative_prompt_embeds=pack_text([one[1] for one in given]),
        **SMALL,
    )
    np.testing.assert_array_equal(by_hand, draw(pipeline, **SMALL))


def test_sdxl_packs_both_encoders_and_the_pooled_embedding() -> None:
    whole = [small_sdxl(seed) for seed in range(N)]
    options = {"prompt": [PROMPT, "an owl"], "negative_prompt": [NEGATIVE, ""], "num_images_per_prompt": 2}
    packed = different(whole).pipeline().encode_prompt(device="cpu", **options)
    alone = [one.encode_prompt(device="cpu", **options) for one in whole]
    assert [tuple(tensor.shape) for tensor in packed] == [(4, N * 16, 64)] * 2 + [(4, N * 32)] * 2
    for place, tensor in enumerate(packed):
        for mine, one in zip(tensor.chunk(N, dim=1), alone, strict=True):
            assert torch.equal(mine, one[place])


def test_own_text_encoders_matter() -> None:
    first, second = small_pipeline(0), small_pipeline(1)
    other = small_pipeline(1, text_encoder=tiny_text_encoder(7))
    pictures = [draw(different([first, one]).pipeline(), **SMALL) for one in (second, other)]
    assert unlike(*pictures, 1e-3)


def test_skipped_clip_layers_go_through_each_encoders_own_norm() -> None:
    whole = [small_pipeline(seed) for seed in range(N)]
    (packed, _) = different(whole).pipeline().encode_prompt(PROMPT, "cpu", 1, False, clip_skip=1)
    ids = whole[0].tokenizer(PROMPT, padding="max_length", return_tensors="pt").input_ids
    for mine, one in zip(packed.chunk(N, dim=1), whole, strict=True):
        encoder = one.text_encoder
        states = encoder(ids, output_hidden_states=True).hidden_states[-2]
        assert torch.equal(mine, getattr(encoder, "text_model", encoder).final_layer_norm(states))


def test_a_plain_embedding_is_refused_with_the_remedy() -> None:
    whole = small_pipeline()
    embedding = whole.encode_prompt(PROMPT, "cpu", 1, False)[0]
    with pytest.raises(ValueError, match=r"does not divide by the 3 experts.*pack_text"):
        draw(
            copies(as_expert(whole), N).pipeline(),
            prompt=None,
            negative_prompt=None,
            prompt_embeds=embedding,
            guidance_scale=1.0,
        )


@pytest.mark.parametrize(
    ("build", "width"), [(tiny_sd3_pipeline, 128), (tiny_chroma_pipeline, 144)], ids=["SD 3", "Chroma"]
)
def test_embeddings_of_one_expert_are_refused_where_pipelines_pack_in_their_own_way(build: Any, width: int) -> None:
    whole = build()
    sd3 = "text_encoder_3" in whole.components
    given = whole.encode_prompt(
        "a red fox", **({"prompt_2": None, "prompt_3": None} if sd3 else {}), max_sequence_length=12
    )
    texts = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    names = (
        texts
        if sd3
        else ("prompt_embeds", None, "prompt_attention_mask", *texts[1:2], None, "negative_prompt_attention_mask")
    )
    call = {name: one for name, one in zip(names, given, strict=True) if name}
    pipeline = copies(as_expert(whole)).pipeline()
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(
        ValueError, match=rf"for 2 experts its last axis must be {width}. Pass one embedding per expert"
    ):
        pipeline(height=16, width=24, num_inference_steps=1, **call)


def test_a_pipeline_with_room_for_one_text_encoder_is_refused_by_name() -> None:
    wholes = [small_pipeline(seed, unet=small_unet(seed, attention_type="gated")) for seed in (0, 1)]
    with pytest.raises(ValueError, match=r"GLIGENPipeline reads the phrases .*pipeline_with\(pipe, \[Gligen"):
        different(wholes).pipeline(StableDiffusionGLIGENPipeline)
    assert isinstance(different(wholes[:1]).pipeline(StableDiffusionGLIGENPipeline), StableDiffusionGLIGENPipeline)
