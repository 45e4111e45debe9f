"""Ensembles of FLUX.2 models in unmodified diffusers pipelines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from transformers import CLIPProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from diffusemble import EnsembleDenoiser, pack_text
from diffusemble.config.generate import GenerateConfig
from diffusemble.drawing import draw as draw_prompts
from diffusemble.experts.expert import Expert
from diffusemble.generation import generate
from tiny import as_expert
from tiny_flux2 import tiny_flux2, tiny_flux2_pipeline, tiny_qwen3_tokenizer
from unet_inputs import randn


def draw(pipeline: Any, **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    settings = {
        "prompt": ["a red fox at night", "an owl"],
        "guidance_scale": 3.0,
        "num_images_per_prompt": 1,
        "height": 16,
        "width": 24,
        "num_inference_steps": 2,
        "output_type": "np",
        "max_sequence_length": 48,
        "generator": torch.Generator().manual_seed(11),
    }
    return pipeline(**{**settings, **options}).images


def frozen(pipeline: Any) -> Any:
    """A pipeline whose transformer needs no gradients, as an ensemble's experts."""
    pipeline.transformer.requires_grad_(False)
    return pipeline


@pytest.mark.parametrize("distilled", [False, True], ids=["base", "distilled"])
def test_copies_of_one_expert_draw_what_it_draws(distilled: bool) -> None:
    whole = frozen(tiny_flux2_pipeline(is_distilled=distilled))
    one = as_expert(whole)
    twin = Expert("twin", one.denoiser, one.components, one.pipeline_class)
    expected = draw(whole)
    assert expected.std() > 0.03
    np.testing.assert_array_equal(draw(EnsembleDenoiser([one]).pipeline()), expected)
    np.testing.assert_array_equal(draw(EnsembleDenoiser([one, twin]).pipeline()), expected)


def test_every_expert_reads_the_prompt_with_its_own_encoder() -> None:
    wholes = [tiny_flux2_pipeline(seed) for seed in (1, 2)]
    ensemble = EnsembleDenoiser([as_expert(whole, f"expert {number}") for number, whole in enumerate(wholes)])
    pipeline = ensemble.pipeline()
    with torch.no_grad():
        text, ids = pipeline.encode_prompt("a red fox", max_sequence_length=48)
        own, own_ids = zip(*(whole.encode_prompt("a red fox", max_sequence_length=48) for whole in wholes), strict=True)
        places = torch.cartesian_prod(torch.arange(1), torch.arange(4), torch.arange(6), torch.arange(1))
        call = {"hidden_states": randn(1, 24, 16), "timestep": torch.tensor([0.7]), "img_ids": places}
        piped = pipeline.transformer(**call, encoder_hidden_states=text, txt_ids=ids).sample
        by_hand = ensemble(**call, encoder_hidden_states=pack_text(own), txt_ids=own_ids[0]).sample
    assert torch.equal(piped, by_hand)
    assert not torch.equal(own[0], own[1])
    with pytest.raises(ValueError, match=r"encoder_hidden_states has shape \(1, 48, 24\), but for 2 experts .* be 48"):
        draw(pipeline, prompt=None, prompt_embeds=own[0], guidance_scale=1.0)  # 48 tokens are no 24 of each


def test_generate_draws_with_guidance() -> None:
    experts = [as_expert(tiny_flux2_pipeline(seed), f"expert {seed}") for seed in (1, 2)]
    settings = {"prompts": ("a red fox",), "steps": 1, "height": 16, "width": 24, "device": "cpu"}

    def picture(**change: Any) -> np.ndarray:
        (found,) = draw_prompts(EnsembleDenoiser(experts), GenerateConfig(**{**settings, **change}))
        return np.asarray(found.image).astype(int)

    assert np.abs(picture(guidance=1.0) - picture(guidance=4.0)).max() > 0
    with pytest.raises(ValueError, match=r"negative: Flux2KleinPipeline .* takes no negative prompt"):
        picture(guidance=4.0, negative="an owl")


def test_guidance_is_there_if_one_expert_needs_it_and_said_to_be_missing_if_none_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wholes = [tiny_flux2_pipeline(seed, is_distilled=seed == 1) for seed in (1, 2)]
    experts = [as_expert(whole, f"expert {number}") for number, whole in enumerate(wholes)]
    assert not EnsembleDenoiser(experts).pipeline().config.is_distilled
    assert EnsembleDenoiser(experts[:1]).pipeline().config.is_distilled
    wholes[0].save_pretrained(tmp_path)
    settings = {"prompts": ("a fox",), "steps": 1, "height": 16, "width": 16, "device": "cpu"}
    generate(GenerateConfig(experts=str(tmp_path), guidance=4.0, **settings))
    (message,) = (record.getMessage() for record in caplog.records if record.name.startswith("diffusemble"))
    assert message == "Guidance 4 changes nothing: these experts are distilled, and draw without."


def test_pictures_beside_the_one_that_is_drawn_are_refused() -> None:
    pipeline = EnsembleDenoiser([as_expert(tiny_flux2_pipeline())]).pipeline()
    with pytest.raises(ValueError, match=r"pictures beside the one that is drawn .*FLUX.2.* are not supported"):
        draw(pipeline, prompt="a fox", num_images_per_prompt=1, image=Image.new("RGB", (64, 64)))


def test_the_pipeline_of_dev_is_refused_by_name_but_not_its_experts() -> None:
    """Dev reads with a processor, which holds a tokenizer."""
    parts = {"tokenizer": CLIPProcessor(CLIPImageProcessorPil(), tiny_qwen3_tokenizer())}
    wholes = [
        as_expert(tiny_flux2_pipeline(seed, transformer=tiny_flux2(seed, guidance_embeds=True))) for seed in (0, 1)
    ]
    experts = [replace(one, name=str(i), components={**one.components, **parts}) for i, one in enumerate(wholes)]
    ensemble = EnsembleDenoiser(experts)
    with pytest.raises(ValueError, match=r"Flux2Pipeline .* with Mistral .* Draw with FLUX.2 klein"):
        ensemble.pipeline(Flux2Pipeline)
    others = {"tokenizer": tiny_qwen3_tokenizer(64)}
    with pytest.raises(ValueError, match="tokenizer length is 64, but expert 1"):
        EnsembleDenoiser([experts[0], replace(experts[1], components={**wholes[1].components, **others})])


def test_a_lora_reaches_every_expert_and_leaves_it_again(tmp_path: Path) -> None:
    trained = tiny_flux2(5)
    layers = ["to_q", "to_qkv_mlp_proj", "to_add_out"]
    trained.add_adapter(LoraConfig(r=2, target_modules=layers, init_lora_weights=False))
    Flux2KleinPipeline.save_lora_weights(str(tmp_path), transformer_lora_layers=get_peft_model_state_dict(trained))
    given = {"prompt": "a fox", "guidance_scale": 1.0, "num_inference_steps": 1}
    whole = frozen(tiny_flux2_pipeline())
    one = as_expert(whole)
    twin = Expert("twin", tiny_flux2(), one.components, one.pipeline_class)
    plain, pipeline = draw(whole, **given), EnsembleDenoiser([one, twin]).pipeline()
    pipeline.load_lora_weights(str(tmp_path))
    ours = draw(pipeline, **given)
    pipeline.unload_lora_weights()
    np.testing.assert_array_equal(draw(pipeline, **given), plain)
    whole.load_lora_weights(str(tmp_path))
    np.testing.assert_array_equal(ours, draw(frozen(whole), **given))
    assert np.abs(ours - plain).max() > 1e-3
