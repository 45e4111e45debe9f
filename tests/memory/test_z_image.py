"""Memory plans of Z-Image, whose language model could read far more than a prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import ZImageControlNetPipeline

from diffusemble import EnsembleDenoiser
from diffusemble.config.memory import MemoryConfig
from diffusemble.memory.keep import Drawing, choose_plan
from diffusemble.memory.measure import measure_weights
from diffusemble.memory.networks import networks_of
from diffusemble.memory.place import Placement
from diffusemble.memory.plan import Working, make_plan
from diffusemble.memory.working import PER_TOKEN
from tiny import as_expert
from tiny_z_image import WIDTH, tiny_z_image_pipeline, z_image_controlnet


def an_ensemble() -> EnsembleDenoiser:
    return EnsembleDenoiser([as_expert(tiny_z_image_pipeline(seed), f"expert {seed}") for seed in range(2)]).eval()


def drawn(ensemble: EnsembleDenoiser) -> np.ndarray:
    pipeline, seeds = ensemble.pipeline(), [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    pipeline.set_progress_bar_config(disable=True)
    given = {"generator": seeds, "num_inference_steps": 2, "height": 16, "width": 16, "output_type": "np"}
    images: np.ndarray = pipeline(["a fox", "two"], **given).images
    return images


def test_a_plan_counts_prompts_of_their_own_length() -> None:
    ensemble = an_ensemble()
    assert ensemble.experts[0].components["text_encoder"].config.max_position_embeddings > 512
    plan = choose_plan(ensemble, "1GB", Drawing(16, 16, batch=2))
    assert plan.encode.working == PER_TOKEN * 2 * 512 * WIDTH * 4
    assert plan.denoise.working > 2 * 2 * 512 * 24 * 4  # the captions of both experts and both halves of guidance alone


def test_blocks_that_pass_draw_the_same_bits() -> None:
    ensemble = an_ensemble()
    expected = drawn(ensemble)
    plan = make_plan(measure_weights(networks_of(ensemble)), Working(), MemoryConfig(resident=0, parts="layers"))
    with Placement(ensemble, plan, "cpu"):
        np.testing.assert_array_equal(drawn(ensemble), expected)


def test_a_controlnet_that_shares_weights_with_an_expert_is_not_overlooked() -> None:
    ensemble, net = an_ensemble(), z_image_controlnet()
    pipeline = ensemble.pipeline(ZImageControlNetPipeline, controlnet=net)
    with pytest.raises(ValueError, match=r"knows what ControlNets .* need, and this is a ZImageControlNetModel. Leave"):
        choose_plan(ensemble, "1GB", Drawing(16, 16), pipelines=[pipeline])
