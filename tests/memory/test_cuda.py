"""The same laws where weights really travel; needs a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusemble import EnsembleDenoiser
from diffusemble.config.generate import GenerateConfig
from diffusemble.config.memory import MemoryConfig
from diffusemble.generation import generate
from diffusemble.memory.bundle import bytes_of, weights_of
from diffusemble.memory.place import Placement
from diffusemble.memory.recompute import recompute_blocks
from memory_cases import a_call, a_plan, an_ensemble, predict
from stock import small_pipeline
from tiny import as_expert, tiny_sdxl_pipeline
from tiny_dit import tiny_chroma_pipeline, tiny_flux_pipeline, tiny_sd3_pipeline
from tiny_flux2 import tiny_flux2_pipeline
from tiny_qwen import tiny_qwen_pipeline
from tiny_z_image import tiny_z_image_pipeline

pytestmark = pytest.mark.gpu

PIPELINES = (
    *(small_pipeline, tiny_sdxl_pipeline, tiny_flux_pipeline, tiny_chroma_pipeline, tiny_sd3_pipeline),
    *(tiny_flux2_pipeline, tiny_qwen_pipeline, tiny_z_image_pipeline),
)


def on_cuda(call: dict) -> dict:
    def move(value: object) -> object:
        if isinstance(value, dict):
            return {name: move(one) for name, one in value.items()}
        return value.to("cuda") if isinstance(value, torch.Tensor) else value

    return {name: move(value) for name, value in call.items()}


@pytest.mark.parametrize("family", ["sd", "sdxl", "flux", "sd3"])
@pytest.mark.parametrize("resident", [0, 1, 1.6, 3])
def test_weights_that_travel_give_the_same_bits(family: str, resident: float) -> None:
    ensemble = an_ensemble(family)
    call = on_cuda(a_call(ensemble))
    ensemble.to("cuda")
    expected = predict(ensemble, call)
    ensemble.to("cpu")
    with Placement(ensemble, a_plan(ensemble, resident=resident), "cuda") as placed:
        assert ensemble.device.type == "cuda"
        for _ in range(20):  # copies race against kernels, if anything does
            assert torch.equal(predict(ensemble, call), expected)
        assert placed.residence.peak <= placed.plan.weights
    assert {weight.device.type for weight in ensemble.parameters()} == {"cpu"}


@pytest.mark.parametrize("parts", ["visit", "layers"])
@pytest.mark.parametrize("build", PIPELINES)
def test_pipelines_of_every_family_draw_with_parts_that_visit(build: Any, parts: str) -> None:
    ensemble = EnsembleDenoiser([as_expert(build(seed), f"expert {seed}") for seed in range(2)]).eval()
    plan = a_plan(ensemble, resident=1, parts=parts)
    images = []
    for where in ("everything there", "placed"):
        if where == "everything there":
            pipeline = ensemble.pipeline().to("cuda")
            images.append(drawn(pipeline))
            pipeline.to("cpu")
        else:
            with Placement(ensemble, plan, "cuda"):
                images.append(drawn(ensemble.pipeline()))
    np.testing.assert_array_equal(*images)


def drawn(pipeline: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    extra = {"max_sequence_length": 16} if "max_sequence_length" in pipeline.__call__.__annotations__ else {}
    images: np.ndarray = pipeline(
        prompt="a fox",
        generator=torch.Generator().manual_seed(1),
        num_inference_steps=2,
        height=16,
        width=16,
        output_type="np",
        **extra,
    ).images
    return images


def test_memory_is_really_left() -> None:
    ensemble = an_ensemble("sd", "mean")  # SABW alone, which stays, has nearly half of the weights of these tiny models
    call = on_cuda(a_call(ensemble))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    with Placement(ensemble, a_plan(ensemble, resident=0), "cuda"):
        predict(ensemble, call)
        assert torch.cuda.memory_allocated() - before < 0.5 * bytes_of(weights_of([ensemble]))


def test_gradients_come_through_travelling_weights() -> None:
    ensemble = an_ensemble("sd", n=2)
    call = on_cuda(a_call(ensemble))
    ensemble.to("cuda")
    ensemble(**call).sample.square().mean().backward()
    expected = [weight.grad.clone() for weight in ensemble.aggregator.parameters() if weight.grad is not None]
    ensemble.zero_grad()
    ensemble.to("cpu")
    with Placement(ensemble, a_plan(ensemble, resident=0), "cuda"):
        recompute_blocks(ensemble)
        ensemble(**call).sample.square().mean().backward()
        found = [weight.grad.clone() for weight in ensemble.aggregator.parameters() if weight.grad is not None]
    one, other = (torch.cat([gradient.flatten() for gradient in side]) for side in (found, expected))
    assert (one - other).norm() <= 1e-3 * other.norm()  # by norm: sums may be added up in another order


def test_a_pipeline_draws_by_a_plan_what_it_draws_with_everything_there(tmp_path: Path) -> None:
    for seed in range(2):
        small_pipeline(seed).save_pretrained(tmp_path / f"e{seed}")
    config = GenerateConfig(
        prompts=("a fox",),
        experts=(str(tmp_path / "e0"), str(tmp_path / "e1")),
        steps=3,
        device="cuda",  # without an index, as it is chosen by itself
        dtype="float32",
    )
    for level in ("block", "output"):
        own = config.model_copy(update={"level": level})
        free = generate(own).pictures[0].image
        memory = MemoryConfig(resident=0, parts="visit")
        drawn = generate(own.model_copy(update={"memory": memory, "memory_budget": "1GB"}))
        assert drawn.pictures[0].image.tobytes() == free.tobytes()
        assert drawn.memory is not None
        assert drawn.memory.allocated is not None
