"""Ensembles of Qwen-Image models in unmodified diffusers pipelines."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from diffusemble import EnsembleDenoiser, pack_text
from diffusemble.config.generate import GenerateConfig
from diffusemble.drawing import draw as draw_prompts
from tiny import as_expert
from tiny_ensembles import check_copies
from tiny_qwen import tiny_qwen_pipeline
from unet_inputs import randn


def draw(pipeline: Any, **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    settings = {
        "prompt": ["a red fox at night", "an owl"],
        "negative_prompt": ["", "blurry"],
        "true_cfg_scale": 3.0,
        "num_images_per_prompt": 2,
        "height": 16,
        "width": 24,
        "num_inference_steps": 2,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(11),
    }
    return pipeline(**{**settings, **options}).images


def test_copies_of_one_expert_draw_what_it_draws() -> None:
    check_copies(tiny_qwen_pipeline(), draw)


def test_every_expert_reads_the_prompt_with_its_own_encoder() -> None:
    wholes = [tiny_qwen_pipeline(seed) for seed in (1, 2)]
    ensemble = EnsembleDenoiser([as_expert(whole, f"expert {number}") for number, whole in enumerate(wholes)])
    call = {"hidden_states": randn(1, 24, 16), "timestep": torch.tensor([0.7]), "img_shapes": [[(1, 4, 6)]]}
    with torch.no_grad():
        text, _ = ensemble.pipeline().encode_prompt("a red fox")
        own = [whole.encode_prompt("a red fox")[0] for whole in wholes]
        piped = ensemble.pipeline().transformer(**call, encoder_hidden_states=text).sample
        by_hand = ensemble(**call, encoder_hidden_states=pack_text(own)).sample
    assert torch.equal(piped, by_hand)
    assert not torch.equal(own[0], own[1])


def test_generate_draws_with_guidance_and_negative_prompts() -> None:
    experts = [as_expert(tiny_qwen_pipeline(seed), f"expert {seed}") for seed in (1, 2)]
    settings = {"prompts": ("a red fox",), "steps": 2, "height": 16, "width": 24, "device": "cpu"}

    def picture(**change: Any) -> np.ndarray:
        (found,) = draw_prompts(EnsembleDenoiser(experts), GenerateConfig(**{**settings, **change}))
        return np.asarray(found.image).astype(int)

    plain = picture(guidance=1.0)
    assert np.abs(plain - picture(guidance=4.0)).max() > 0
    assert np.abs(picture(guidance=4.0) - picture(guidance=4.0, negative="an owl")).max() > 0
