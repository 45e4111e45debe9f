"""Which FLUX and SD3 experts can be aggregated block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from diffusemble.experts.expert import check_block_level
from tiny import as_expert, tiny_scheduler
from tiny_dit import (
    tiny_flow_scheduler,
    tiny_flow_vae,
    tiny_flux,
    tiny_flux_pipeline,
    tiny_sd3,
    tiny_sd3_pipeline,
    tiny_t5_tokenizer,
)


def judge(build: Callable[..., Any], **parts: Any) -> None:
    check_block_level([as_expert(build(1), "one"), as_expert(build(2, **parts), "two")])


@pytest.mark.parametrize("build", [tiny_flux_pipeline, tiny_sd3_pipeline])
def test_experts_of_one_base_fit_whatever_their_shift(build: Callable[..., Any]) -> None:
    judge(build, scheduler=tiny_flow_scheduler(shift=7.0, use_dynamic_shifting=True))


@pytest.mark.parametrize(
    ("build", "parts", "message"),
    [
        (
            tiny_flux_pipeline,
            {"transformer": tiny_flux(guidance_embeds=False)},
            "denoiser guidance_embeds is False, but expert 1 .* has True",
        ),
        (
            tiny_flux_pipeline,
            {"scheduler": tiny_scheduler()},
            "scheduler process is 'diffusion', but expert 1 .* has 'flow matching'. .* one noise schedule",
        ),
        (
            tiny_flux_pipeline,
            {"tokenizer_2": tiny_t5_tokenizer(9)},
            "tokenizer_2 length is 9, but expert 1 .* has 16. .* one tokenizer",
        ),
        (
            tiny_flux_pipeline,
            {"vae": tiny_flow_vae(shift_factor=0.2)},
            "vae shift_factor is 0.2, but expert 1 .* has 0.11",
        ),
        (
            tiny_sd3_pipeline,
            {"transformer": tiny_sd3(dual_attention_layers=())},
            r"denoiser dual_attention_layers is \[\], but expert 1 .* has \[0, 1\]",
        ),
        (tiny_sd3_pipeline, {"tokenizer_3": tiny_t5_tokenizer(9)}, "tokenizer_3 length is 9, but expert 1 .* has 16"),
        (
            tiny_sd3_pipeline,
            {"scheduler": tiny_flow_scheduler(num_train_timesteps=500)},
            "scheduler num_train_timesteps is 500",
        ),
    ],
)
def test_what_differs_is_named(build: Callable[..., Any], parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"Expert 2 \('two'\): {message}"):
        judge(build, **parts)


def test_the_two_families_do_not_mix() -> None:
    with pytest.raises(
        ValueError, match=r"denoiser class is 'SD3Transformer2DModel', but expert 1 .* 'FluxTransformer"
    ):
        check_block_level([as_expert(tiny_flux_pipeline(), "one"), as_expert(tiny_sd3_pipeline(), "two")])
