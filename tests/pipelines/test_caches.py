"""Diffusers' caches on experts: those of single attentions work, those of whole blocks at output level only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import SeaCacheConfig, TextKVCacheConfig, apply_faster_cache, apply_text_kv_cache

from diffusemble import EnsembleDenoiser, OutputEnsembleDenoiser, pack_text
from stock import small_pipeline, small_unet
from tiny import as_expert
from tiny_dit import tiny_flux, tiny_flux_pipeline
from tiny_ensembles import SMALL
from tiny_ensembles import draw as draw_small
from transformer_cases import Case

STEPS = 4


def now() -> int:
    return 500


BROADCAST = PyramidAttentionBroadcastConfig(
    spatial_attention_block_skip_range=2,
    spatial_attention_timestep_skip_range=(0, 1000),
    current_timestep_callback=now,
)
TAYLOR = {"cache_interval": 2, "disable_cache_before_step": 1, "taylor_factors_dtype": torch.float32}
ATTENTION = {"attention broadcast": BROADCAST, "TaylorSeer": TaylorSeerCacheConfig(**TAYLOR)}
BLOCKS = {
    "fbc_leader_block_hook": FirstBlockCacheConfig(threshold=0.9),
    "mag_cache_leader_block_hook": MagCacheConfig(num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS),
    "sea_cache_root": SeaCacheConfig(),
    "taylorseer_cache": TaylorSeerCacheConfig(**TAYLOR, use_lite_mode=True),
    "faster_cache_denoiser": FasterCacheConfig(spatial_attention_block_skip_range=2, current_timestep_callback=now),
}


def wholes(n: int) -> list[Any]:
    """Equal pipelines, each of its own transformer, that call it twice a step."""
    return [tiny_flux_pipeline(transformer=tiny_flux(guidance_embeds=False)) for _ in range(n)]


def draw(pipeline: Any, tokens: int = 12) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": 16, "width": 24, "num_inference_steps": STEPS, "max_sequence_length": tokens, "output_type": "np"}
    guided = {"negative_prompt": "fog", "true_cfg_scale": 2.0}
    return pipeline("a red fox", **size, **guided, generator=torch.Generator().manual_seed(11)).images


def together(level: type, n: int = 2) -> Any:
    return level([as_expert(whole, f"expert {number}") for number, whole in enumerate(wholes(n))]).pipeline()


@pytest.mark.parametrize("name", ATTENTION)
def test_a_cache_of_attentions_serves_every_expert_and_starts_anew_with_every_picture(name: str) -> None:
    (alone,), pair = wholes(1), together(EnsembleDenoiser)
    plain = draw(alone)
    for pipeline in (alone, pair):
        pipeline.transformer.enable_cache(ATTENTION[name])
    expected = draw(alone)
    assert np.abs(expected - plain).max() > 1e-4
    np.testing.assert_array_equal(draw(pair), expected)
    np.testing.assert_array_equal(draw(pair), expected)
    pair.transformer.disable_cache()
    np.testing.assert_array_equal(draw(pair), plain)


@pytest.mark.parametrize("cache", BLOCKS)
def test_a_cache_of_whole_blocks_is_refused_by_name(cache: str) -> None:
    first, second = tiny_flux(), tiny_flux()
    second.enable_cache(BLOCKS[cache])
    arguments = Case(tiny_flux).arguments(first)
    for name in ("encoder_hidden_states", "pooled_projections"):
        arguments[name] = torch.cat([arguments[name]] * 2, dim=1)
    ensemble = EnsembleDenoiser([first, second])
    with pytest.raises(ValueError, match=rf"Expert 2 has a cache that skips whole blocks \({cache}\).*disable_cache"):
        ensemble(**arguments)
    second.disable_cache()
    ensemble(**arguments)


def test_experts_that_meet_at_the_output_may_skip_whole_blocks() -> None:
    (alone,), pair = wholes(1), together(OutputEnsembleDenoiser)
    plain = draw(alone, 512)
    for pipeline in (alone, pair):
        pipeline.transformer.enable_cache(BLOCKS["fbc_leader_block_hook"])
    expected = draw(alone, 512)
    assert np.abs(expected - plain).max() > 1e-3
    np.testing.assert_allclose(draw(pair, 512), expected, atol=2e-5)


ON_THE_WHOLE: dict[str, Callable[[Any], None]] = {
    "faster_cache_denoiser": lambda whole: apply_faster_cache(whole, BLOCKS["faster_cache_denoiser"]),
    "text_kv_cache_transformer": lambda whole: apply_text_kv_cache(whole, TextKVCacheConfig()),
}


@pytest.mark.parametrize("level", [EnsembleDenoiser, OutputEnsembleDenoiser])
@pytest.mark.parametrize("cache", ON_THE_WHOLE)
def test_a_cache_that_finds_no_blocks_because_it_is_on_the_ensemble_is_refused(cache: str, level: type) -> None:
    pipeline = level([as_expert(small_pipeline(seed), f"{seed}") for seed in (0, 1)]).pipeline()
    ON_THE_WHOLE[cache](pipeline.unet)
    with pytest.raises(
        ValueError, match=rf"ensemble itself has a cache \({cache}\).* ensemble\.enable_cache\(config\)"
    ):
        draw_small(pipeline, num_inference_steps=1, **SMALL)
    pipeline.unet._diffusers_hook.remove_hook(cache)
    draw_small(pipeline, num_inference_steps=1, **SMALL)


def hooked(module: Any) -> Any:
    return module.register_forward_hook(lambda *_: None).remove


def patched(module: Any) -> Any:
    module.forward = lambda *_: None
    return lambda: vars(module).pop("forward")


@pytest.mark.parametrize("put", [hooked, patched])
@pytest.mark.parametrize("place", ["down_blocks.0", "up_blocks.1", "its whole denoiser"])
def test_what_waits_for_a_call_that_is_never_made_is_refused(place: str, put: Callable[[Any], Any]) -> None:
    """As DeepCache and FreeNoise do; the middle block is called as it is, so what is put there acts."""
    ensemble = EnsembleDenoiser([small_unet(0), small_unet(1)])
    call = (torch.randn(1, 4, 8, 8), 500, pack_text([torch.randn(1, 16, 32)] * 2))
    expert = ensemble.denoisers[1]
    take_off = put(expert if "whole" in place else expert.get_submodule(place))
    with pytest.raises(ValueError, match=rf"Expert 2 has a hook or a forward of its own around {place}"):
        ensemble(*call)
    take_off()
    hooked(expert.mid_block)
    ensemble(*call)
