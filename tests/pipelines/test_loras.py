"""LoRAs that a pipeline loads reach every expert, its denoiser and its text encoders."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict

from diffusemble import EnsembleDenoiser, OutputEnsembleDenoiser
from stock import small_pipeline, small_sdxl
from tiny import as_expert
from tiny_ensembles import ATOL, SMALL, different, draw, unlike

SHORT = {**SMALL, "num_inference_steps": 1, "guidance_scale": 1.0}
LAYERS = {"unet": ["to_q", "to_v", "ff.net.2"], "text_encoder": ["q_proj", "out_proj"]}
LAYERS["text_encoder_2"] = LAYERS["text_encoder"]


BUILDS = {"SD": small_pipeline, "SDXL": small_sdxl}


def lora(build: Any, seed: int, parts: tuple[str, ...] = tuple(LAYERS)) -> dict[str, torch.Tensor]:
    """Weights of a LoRA, in the layout that diffusers saves."""
    return {name: weight.clone() for name, weight in _trained(build, seed, parts).items()}


@cache
def _trained(build: Any, seed: int, parts: tuple[str, ...]) -> dict[str, torch.Tensor]:
    whole, found = build(0), {}
    for part in parts:
        model = getattr(whole, part, None)
        if model is not None:
            torch.manual_seed(seed)
            model.add_adapter(LoraConfig(r=2, target_modules=LAYERS[part], init_lora_weights=False))
            weights = get_peft_model_state_dict(model, adapter_name="default")
            found |= {f"{part}.{key}": 4 * value for key, value in convert_state_dict_to_diffusers(weights).items()}
    return found


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")  # peft's, for a second LoRA
@pytest.mark.parametrize("name", BUILDS)
def test_two_equal_experts_draw_with_loras_what_one_draws(name: str, tmp_path: Path) -> None:
    build = BUILDS[name]
    alone, together = build(0), different([build(0), build(0)]).pipeline()
    plain, drawn = draw(alone, **SHORT), {}

    def step(what: str, pipeline: Any, **call: Any) -> None:
        drawn.setdefault(what, []).append(draw(pipeline, **SHORT, **call))

    for pipeline in (alone, together):
        pipeline.load_lora_weights(lora(build, 1), adapter_name="ink")
        step("one", pipeline)
        step("half of one", pipeline, cross_attention_kwargs={"scale": 0.5})
        pipeline.load_lora_weights(lora(build, 2, ("unet",)), adapter_name="chalk")
        pipeline.set_adapters(["ink", "chalk"], [0.7, 0.4])
        step("two", pipeline)
        pipeline.set_adapters(["ink"], [{"unet": {"down": 0.2, "up": 0.9}, "text_encoder": 0.5}])
        step("by block", pipeline)
        pipeline.disable_lora()
        step("off", pipeline)
        pipeline.enable_lora()
        pipeline.set_adapters("chalk", 0.6)
        pipeline.delete_adapters("ink")
        step("deleted", pipeline)
        pipeline.fuse_lora(components=["unet"])
        step("fused", pipeline)
        pipeline.unfuse_lora(components=["unet"])
        pipeline.unload_lora_weights()
        step("unloaded", pipeline)
        pipeline.load_lora_weights(lora(build, 1), adapter_name="ink")
        step("again", pipeline)
    for what, (expected, ours) in drawn.items():
        np.testing.assert_allclose(ours, expected, atol=ATOL, err_msg=what)
        assert unlike(expected, plain, 1e-3) == (what not in ("off", "unloaded")), what
    assert together.get_list_adapters() == alone.get_list_adapters()
    assert together.get_active_adapters() == alone.get_active_adapters() == ["ink"]


def test_a_lora_takes_the_place_of_another() -> None:
    drawn = []
    for pipeline in (small_pipeline(0), different([small_pipeline(0), small_pipeline(0)]).pipeline()):
        pipeline.enable_lora_hotswap(target_rank=2)
        for seed, swap in ((1, False), (2, True)):
            pipeline.load_lora_weights(lora(small_pipeline, seed, ("unet",)), adapter_name="ink", hotswap=swap)
            drawn.append(draw(pipeline, **SHORT))
    np.testing.assert_allclose(drawn[2:], drawn[:2], atol=ATOL)
    assert unlike(drawn[0], drawn[1], 1e-3)


def test_a_lora_reaches_every_expert_and_its_text_encoder() -> None:
    whole = [small_pipeline(seed) for seed in range(2)]
    pipeline = different(whole).pipeline()
    before = draw(pipeline, **SHORT)
    pipeline.load_lora_weights(lora(small_pipeline, 1))
    assert unlike(draw(pipeline, **SHORT), before, 1e-3)
    for one in whole:
        for part in (one.unet, one.text_encoder):
            assert list(part.peft_config) == ["default_0"]


def test_a_text_encoder_that_experts_share_is_changed_once() -> None:
    first = small_pipeline(0)
    second = small_pipeline(1, text_encoder=first.text_encoder)
    pipeline = different([first, second]).pipeline()
    pipeline.load_lora_weights(lora(small_pipeline, 1))
    alone = small_pipeline(0)
    alone.load_lora_weights(lora(small_pipeline, 1))
    mine = pipeline.encode_prompt("an owl", "cpu", 1, False)[0].chunk(2, dim=1)
    expected = alone.encode_prompt("an owl", "cpu", 1, False)[0]
    assert all(torch.equal(part, expected) for part in mine)


def test_text_loras_are_refused_before_anything_is_loaded_where_they_would_not_reach_every_expert() -> None:
    ensemble = different([small_pipeline(0)])
    pipeline = StableDiffusionImg2ImgPipeline(**ensemble.pipeline().components, requires_safety_checker=False)
    message = r"changes text encoders.*pipeline\(StableDiffusionImg2ImgPipeline\), not with from_pipe"
    with pytest.raises(ValueError, match=message):
        pipeline.load_lora_weights(lora(small_pipeline, 1))
    assert not hasattr(ensemble, "peft_config")
    pipeline.load_lora_weights(lora(small_pipeline, 1, ("unet",)), adapter_name="ink")
    assert list(ensemble.peft_config) == ["ink"]
    apart = OutputEnsembleDenoiser([as_expert(small_pipeline(seed), f"expert {seed}") for seed in range(2)])
    with pytest.raises(ValueError, match=r"Add it to the experts it fits when you load them: load_experts"):
        apart.pipeline().load_lora_weights(lora(small_pipeline, 1))
    assert not hasattr(apart, "peft_config")


def test_a_pipeline_around_an_ensemble_is_not_saved(tmp_path: Path) -> None:
    pipeline = EnsembleDenoiser([as_expert(small_pipeline(0))]).pipeline()
    with pytest.raises(ValueError, match=r"cannot be saved.*ensemble\.save_pretrained\(folder\)"):
        pipeline.save_pretrained(tmp_path)


def test_what_belongs_to_one_text_encoder_is_refused_with_the_way_that_works() -> None:
    pipeline = different([small_pipeline(0)]).pipeline()
    with pytest.raises(AttributeError, match=r"'get_input_embeddings' belongs to one\. .*\+word\.safetensors"):
        pipeline.text_encoder.get_input_embeddings()
    with pytest.raises(AttributeError, match="object has no attribute 'nonsense'"):
        pipeline.text_encoder.nonsense
