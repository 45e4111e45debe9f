from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from diffusemble import EnsembleDenoiser
from diffusemble.experts.expert import Expert, as_experts, check_block_level
from tiny import (
    as_expert,
    tiny_pipeline,
    tiny_scheduler,
    tiny_sdxl_pipeline,
    tiny_sdxl_unet,
    tiny_tokenizer,
    tiny_unet,
    tiny_vae,
)

ARCHITECTURE = "experts of one architecture; use checkpoints fine-tuned from the same base model"
SCHEDULE = "one noise schedule and prediction type; use experts fine-tuned from one base model"
LATENTS = "experts whose latents mean the same; use experts that share a VAE's latent space"
TOKENS = "one tokenizer, because the prompt is tokenized once for all"


class Other(nn.Module):
    """A denoiser of another class."""


@pytest.fixture(scope="module")
def rock() -> Expert:
    return as_expert(tiny_pipeline(), "rock")


@pytest.fixture(scope="module")
def fern() -> Expert:
    return as_expert(tiny_pipeline(1), "fern")


def refusal(experts: Sequence[Expert | nn.Module]) -> str:
    with pytest.raises(ValueError) as caught:
        EnsembleDenoiser(experts)
    return str(caught.value)


@pytest.mark.parametrize(
    ("build", "what", "mine", "first"),
    [
        (Other, "denoiser class", "'Other'", "'UNet2DConditionModel'"),
        (lambda: tiny_unet(in_channels=9), "denoiser in_channels", "9", "4"),
        (lambda: tiny_unet(out_channels=8), "denoiser out_channels", "8", "4"),
        (
            lambda: tiny_unet(block_out_channels=(16, 16, 32, 48)),
            "denoiser block_out_channels",
            "[16, 16, 32, 48]",
            "[16, 16, 32, 32]",
        ),
        (lambda: tiny_unet(cross_attention_dim=64), "denoiser cross_attention_dim", "64", "32"),
        (lambda: tiny_unet(layers_per_block=1), "denoiser layers_per_block", "1", "2"),
        (lambda: tiny_unet(time_cond_proj_dim=6), "denoiser time_cond_proj_dim", "6", "None"),  # told the guidance
        (tiny_sdxl_unet, "family", "'SDXL'", "'SD 1.x'"),
    ],
)
def test_another_denoiser_is_refused(
    rock: Expert, build: Callable[[], nn.Module], what: str, mine: str, first: str
) -> None:
    message = refusal([rock, Expert("fern", build())])
    assert message.startswith(f"Expert 2 ('fern'): {what} is {mine}")
    assert f"but expert 1 ('rock') has {first}" in message
    assert ARCHITECTURE in message
    assert message.endswith("or combine what they predict (level: output, OutputEnsembleDenoiser).")


def test_output_level_is_no_way_out_for_latents_that_differ(rock: Expert) -> None:
    message = refusal([rock, as_expert(tiny_sdxl_pipeline(vae=tiny_vae(scaling_factor=0.13025)), "fern")])
    assert "family is 'SDXL'" in message
    assert message.endswith("what they predict cannot be combined at output level either).")


SURROUNDINGS: list[tuple[str, Callable[[], Any], str, Any, Any, str]] = [
    *(
        ("scheduler", partial(tiny_scheduler, **{key: mine}), key, mine, first, SCHEDULE)
        for key, mine, first in (
            ("prediction_type", "v_prediction", "epsilon"),
            ("num_train_timesteps", 500, 1000),
            ("beta_schedule", "linear", "scaled_linear"),
            ("beta_start", 0.1, 0.00085),
            ("beta_end", 0.2, 0.012),
            ("rescale_betas_zero_snr", True, None),
        )
    ),
    ("vae", partial(tiny_vae, latent_channels=8), "latent_channels", 8, 4, LATENTS),
    ("vae", partial(tiny_vae, scaling_factor=0.5), "scaling_factor", 0.5, 0.18215, LATENTS),
    ("vae", partial(tiny_vae, shift_factor=0.1), "shift_factor", 0.1, None, LATENTS),
    ("vae", partial(tiny_vae, latents_mean=(0.5,) * 4), "latents_mean", [0.5] * 4, None, LATENTS),
    (
        "vae",
        partial(
            tiny_vae,
            block_out_channels=(8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
        ),
        "downsampling factor",
        4,
        2,
        LATENTS,
    ),
    ("tokenizer", partial(tiny_tokenizer, 12), "length", 12, 16, TOKENS),
]


@pytest.mark.parametrize("case", SURROUNDINGS, ids=lambda case: f"{case[0]} {case[2]}")
def test_other_surroundings_are_refused(rock: Expert, fern: Expert, case: Any) -> None:
    part, build, key, mine, first, remedy = case
    other = replace(fern, components={**fern.components, part: build()})
    assert refusal([rock, other]).startswith(
        f"Expert 2 ('fern'): {part} {key} is {mine!r}, but expert 1 ('rock') has {first!r}. Block-wise aggregation "
        f"needs {remedy}"
    )


def test_tokenizers_with_other_words_are_refused(rock: Expert, fern: Expert) -> None:
    added, renamed = tiny_tokenizer(), tiny_tokenizer()
    added.add_tokens("<opal>")
    vocabulary = tiny_tokenizer().get_vocab()
    swapped = {**vocabulary, "a": vocabulary["b"], "b": vocabulary["a"]}
    renamed = type(renamed)(vocab=swapped, merges=[], model_max_length=16)
    for tokenizer, count in (
        (added, "191 tokens ending in '<opal>'"),
        (renamed, "190 tokens ending in '<|endoftext|>'"),
    ):
        message = refusal([rock, replace(fern, components={**fern.components, "tokenizer": tokenizer})])
        assert f"Expert 2 ('fern'): tokenizer vocabulary is \"{count}" in message
        assert "but expert 1 ('rock') has \"190 tokens ending in '<|endoftext|>'" in message
        assert "with the same added words" in message


def test_the_third_expert_is_compared_too() -> None:
    with pytest.raises(ValueError, match=r"Expert 3 \('expert 3'\): denoiser out_channels"):
        EnsembleDenoiser([tiny_unet(), tiny_unet(1), tiny_unet(2, out_channels=8)])


def test_what_does_not_matter_may_differ() -> None:
    from diffusers import PNDMScheduler

    unet = tiny_unet(1, sample_size=16)
    unet.register_to_config(decay=0.999, update_after_step=7)  # what trainers with averaged weights leave behind
    pndm = PNDMScheduler.from_config(tiny_scheduler().config)
    check_block_level([as_expert(tiny_pipeline(), "a"), as_expert(tiny_pipeline(1, unet=unet, scheduler=pndm), "b")])


def test_bare_denoisers_are_numbered_and_none_is_refused() -> None:
    assert [expert.name for expert in as_experts([tiny_unet(), tiny_unet()])] == ["expert 1", "expert 2"]
    with pytest.raises(ValueError, match="needs at least one expert; got none"):
        as_experts([])
    with pytest.raises(ValueError, match=r"Two experts are called 'a'. Give every expert of an ensemble its own name"):
        as_experts([Expert("a", tiny_unet()), Expert("a", tiny_unet())])


def test_an_aggregator_of_other_sizes_is_refused() -> None:
    from diffusemble import build_aggregator

    torch.manual_seed(0)
    two = build_aggregator("mean", [tiny_unet(), tiny_unet(1)])
    with pytest.raises(ValueError, match=r"built for Sizes\(.*experts=2\b.*but the experts need Sizes\(.*experts=3\b"):
        EnsembleDenoiser([tiny_unet(), tiny_unet(1), tiny_unet(2)], two)
