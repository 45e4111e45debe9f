"""Ensembles of Z-Image models in unmodified diffusers pipelines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ZImageControlNetInpaintPipeline,
    ZImageControlNetPipeline,
    ZImageImg2ImgPipeline,
    ZImageInpaintPipeline,
    ZImagePipeline,
)

from diffusemble import EnsembleDenoiser, build_aggregator, pack_text
from diffusemble.adapters.guidance import guidance_interval
from diffusemble.config.generate import GenerateConfig
from diffusemble.drawing import MapChoice
from diffusemble.drawing import draw as draw_prompts
from diffusemble.generation import generate
from tiny import as_expert, randomised
from tiny_ensembles import check_copies
from tiny_z_image import TRANSFORMER, tiny_z_image_pipeline, z_image_controlnet
from unet_inputs import randn


def draw(pipeline: Any, **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    settings = {
        "prompt": ["a red fox at night", "an owl which is much too long for thirty-two tokens"],
        "negative_prompt": ["", "blurry"],
        "guidance_scale": 3.0,
        "num_images_per_prompt": 2,
        "height": 16,
        "width": 24,
        "num_inference_steps": 2,
        "output_type": "np",
        "max_sequence_length": 64,
        "generator": torch.Generator().manual_seed(11),
    }
    return pipeline(**{**settings, **options}).images


def picture(seed: int = 5) -> torch.Tensor:
    return randn(1, 3, 16, 24, seed=seed).sigmoid()


def mask() -> torch.Tensor:
    return torch.cat([torch.ones(1, 1, 16, 12), torch.zeros(1, 1, 16, 12)], dim=3)


ONE: Mapping[str, Any] = {"prompt": "a red fox", "negative_prompt": "blurry", "num_images_per_prompt": 1}
LED = {**ONE, "control_image": picture(6), "controlnet_conditioning_scale": 2.0}
PIPELINES: Mapping[type, Callable[[], dict[str, Any]]] = {
    ZImagePipeline: dict,
    ZImageImg2ImgPipeline: lambda: {**ONE, "image": picture(), "strength": 0.6},
    ZImageInpaintPipeline: lambda: {**ONE, "image": picture(), "mask_image": mask(), "strength": 1.0},
    ZImageControlNetPipeline: lambda: LED,
    ZImageControlNetInpaintPipeline: lambda: {**LED, "image": picture(), "mask_image": mask()},
}


def parts_of(cls: type) -> dict[str, Any]:
    if cls is ZImageControlNetInpaintPipeline:  # it reads the control, a mask and the picture around it
        return {"controlnet": z_image_controlnet(control_in_dim=2 * TRANSFORMER["in_channels"] + 1)}
    return {"controlnet": z_image_controlnet()} if "ControlNet" in cls.__name__ else {}


@pytest.mark.parametrize("cls", PIPELINES)
def test_copies_of_one_expert_draw_what_it_draws(cls: type[Any]) -> None:
    whole, given = tiny_z_image_pipeline(), PIPELINES[cls]()
    expected = check_copies(whole, partial(draw, **given), cls, parts_of(cls))
    if "controlnet" in parts_of(cls):  # it does something
        without = draw(cls(**whole.components, **parts_of(cls)), **{**given, "controlnet_conditioning_scale": 0.0})
        assert np.abs(without - expected).max() > 1e-3


def test_a_controlnet_shares_weights_with_one_model_and_not_with_an_ensemble() -> None:
    pipeline = EnsembleDenoiser([as_expert(tiny_z_image_pipeline())]).pipeline()
    with pytest.raises(AttributeError, match=r"'t_scale': .* which ensemble.pipeline\(cls, controlnet=...\) sees to"):
        ZImageControlNetPipeline(**pipeline.components, controlnet=z_image_controlnet())


def test_without_guidance_there_is_one_call_a_step() -> None:
    whole = tiny_z_image_pipeline()
    expected = draw(whole, guidance_scale=0.0)
    np.testing.assert_array_equal(draw(EnsembleDenoiser([as_expert(whole)]).pipeline(), guidance_scale=0.0), expected)
    assert np.abs(expected - draw(whole)).max() > 1e-3


def test_every_expert_reads_the_prompt_with_its_own_encoder() -> None:
    wholes = [tiny_z_image_pipeline(seed) for seed in (1, 2)]
    ensemble = EnsembleDenoiser([as_expert(whole, f"expert {number}") for number, whole in enumerate(wholes)])
    call = {"x": [randn(4, 1, 8, 12)], "t": torch.tensor([0.3])}
    with torch.no_grad():
        text, _ = ensemble.pipeline().encode_prompt("a red fox")
        own = [whole.encode_prompt("a red fox")[0][0] for whole in wholes]
        piped = ensemble.pipeline().transformer(**call, cap_feats=text).sample
        by_hand = ensemble(**call, cap_feats=[pack_text(own)]).sample
    assert torch.equal(piped[0], by_hand[0])
    assert not torch.equal(own[0], own[1])


def test_generate_draws_with_guidance_and_negative_prompts() -> None:
    """1 is without guidance, as for every family, and for this family's pipelines 0."""
    experts = [as_expert(tiny_z_image_pipeline(seed), f"expert {seed}") for seed in (1, 2)]
    settings = {"prompts": ("a red fox",), "steps": 2, "height": 16, "width": 24, "device": "cpu"}

    def drawn(**change: Any) -> np.ndarray:
        (found,) = draw_prompts(EnsembleDenoiser(experts), GenerateConfig(**{**settings, **change}))
        return np.asarray(found.image).astype(int)

    pipeline, seeded = EnsembleDenoiser(experts).pipeline(), torch.Generator().manual_seed(0)
    alone = draw(pipeline, **{**ONE, "negative_prompt": None, "guidance_scale": 0.0, "generator": seeded})
    np.testing.assert_array_equal(drawn(guidance=1.0)[None], (alone * 255).round())
    assert np.abs(drawn(guidance=1.0) - drawn(guidance=4.0)).max() > 0
    assert np.abs(drawn(guidance=4.0) - drawn(guidance=4.0, negative="an owl")).max() > 0


def test_a_prompt_that_the_pipeline_cuts_off_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """These tokenizers take any length, and the pipeline 512 tokens of it."""
    whole = tiny_z_image_pipeline()
    whole.tokenizer.model_max_length = 4096
    whole.save_pretrained(tmp_path)
    settings = {"steps": 1, "height": 16, "width": 16, "device": "cpu", "guidance": 1.0}
    generate(GenerateConfig(experts=str(tmp_path), prompts=("a" * 512 + "rest",), **settings))
    (message,) = (record.getMessage() for record in caplog.records if record.name.startswith("diffusemble"))
    assert message.endswith("too long; the experts do not see its end: 'rest'.")


def test_kept_maps_are_those_of_the_prompt() -> None:
    """Which these pipelines put before what is not to be drawn."""
    experts = [as_expert(tiny_z_image_pipeline(seed), f"expert {seed}") for seed in (1, 2)]
    denoisers = [expert.denoiser for expert in experts]
    ensemble = EnsembleDenoiser(experts, randomised(build_aggregator("sabw", denoisers, preset="tiny")))
    found = []
    for negative in ("", "an owl"):
        settings = {"prompts": ("a red fox",), "steps": 1, "height": 16, "width": 24, "device": "cpu", "guidance": 3.0}
        choice = MapChoice({0: "single.0"}, (1,))
        (picture,) = draw_prompts(ensemble, GenerateConfig(**settings, negative=negative), choice)
        found.append(picture.maps[0].maps[0])
    assert torch.allclose(*found, atol=1e-6)


def test_what_needs_the_halves_of_guidance_in_another_order_is_refused() -> None:
    experts = [as_expert(tiny_z_image_pipeline(seed), f"expert {seed}") for seed in (1, 2)]
    with pytest.raises(ValueError, match=r"MagicFusion reads .* and ZImagePipeline puts them the other way round"):
        EnsembleDenoiser(experts, "magicfusion").pipeline()
    with (
        pytest.raises(ValueError, match="ZImagePipeline has no classifier-free guidance in one call of two halves"),
        guidance_interval(EnsembleDenoiser(experts).pipeline(), 0.1, 0.8),
    ):
        pass


def test_a_lora_reaches_every_expert() -> None:
    stock, wholes = tiny_z_image_pipeline(), [tiny_z_image_pipeline() for _ in range(2)]
    experts = [as_expert(whole, f"expert {number}") for number, whole in enumerate(wholes)]
    together, plain = EnsembleDenoiser(experts).pipeline(), draw(stock)
    name = "diffusion_model.layers.{}.attention.to_q.lora_{}.weight"
    weights = {name.format(layer, "A"): randn(3, 24, seed=layer) for layer in range(3)}
    weights |= {name.format(layer, "B"): randn(24, 3, seed=9 + layer) for layer in range(3)}
    for pipeline in (stock, together):
        pipeline.load_lora_weights(dict(weights), adapter_name="ink")
        pipeline.set_adapters("ink", 0.7)
    expected = draw(stock)
    assert np.abs(expected - plain).max() > 1e-3
    np.testing.assert_array_equal(draw(together), expected)
