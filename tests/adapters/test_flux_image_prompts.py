"""IP-Adapters of FLUX from a configuration, and those that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from diffusemble.adapters.install import adapted_pipeline
from diffusemble.config.generate import GenerateConfig
from diffusemble.drawing import draw
from stock import small_pipeline, small_sdxl
from tiny import randomised
from tiny_dit import flux_controlnet, tiny_flux, tiny_flux_pipeline
from tiny_ensembles import different
from transformer_cases import flux_image_prompt_weights
from unet_inputs import IMAGE_WIDTH, image_prompt_weights

SIDE = 16
pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # diffusers' own
PUBLISHED = (
    ("image_proj.", "ip_adapter_proj_model."),
    ("ip_adapter.", "double_blocks."),
    ("to_k_ip", "processor.ip_adapter_double_stream_k_proj"),
    ("to_v_ip", "processor.ip_adapter_double_stream_v_proj"),
)


def encoder(width: int = IMAGE_WIDTH) -> Any:
    torch.manual_seed(4)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = CLIPVisionConfig(**sizes, image_size=8, patch_size=4, projection_dim=width)
    return randomised(CLIPVisionModelWithProjection(settings))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An image encoder and a picture."""
    encoder().save_pretrained(tmp_path / "image_encoder")
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "like.png")
    return tmp_path


def flat(weights: dict[str, dict[str, Tensor]], published: bool) -> dict[str, Tensor]:
    named = {f"{kind}.{key}": value for kind in weights for key, value in weights[kind].items()}
    for ours, theirs in PUBLISHED if published else ():
        named = {key.replace(ours, theirs): value for key, value in named.items()}
    return named


def config_of(home: Path, *prompts: dict[str, Any], **more: Any) -> GenerateConfig:
    fixed = {"prompts": ["a fox", "an owl"], "seeds": [5], "steps": 2, "guidance": 4.0, "height": SIDE, "width": SIDE}
    like = {"image": str(home / "like.png")}
    return GenerateConfig(**fixed, image_prompts=[{**like, **one} for one in prompts], **more)


def test_they_act_as_given_by_hand(home: Path) -> None:
    wholes = [tiny_flux_pipeline(0), tiny_flux_pipeline(1)]
    weights = flux_image_prompt_weights(wholes[0].transformer)
    for name in ("ours", "published"):
        save_file(flat(weights, name == "published"), home / f"{name}.safetensors")
    processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    pipeline = different(wholes).pipeline(image_encoder=encoder(), feature_extractor=processor)
    without = {"subfolder": None, "image_encoder_pretrained_model_name_or_path": None}
    like = Image.open(home / "like.png").convert("RGB")
    pipeline.load_ip_adapter([weights] * 2, weight_name=["none"] * 2, **without)
    pipeline.set_ip_adapter_scale([0.6, 0.2])
    expected = pipeline(
        ["a fox", "an owl"],
        ip_adapter_image=[like] * 2,
        num_inference_steps=2,
        guidance_scale=4.0,
        height=SIDE,
        width=SIDE,
        max_sequence_length=pipeline.tokenizer_2.model_max_length,
        generator=[torch.Generator("cpu").manual_seed(5) for _ in range(2)],
    ).images
    given = [
        {"weights": str(home / f"{name}.safetensors"), "weight": weight}
        for name, weight in (("published", 0.6), ("ours", 0.2))
    ]
    ours = draw(different([tiny_flux_pipeline(0), tiny_flux_pipeline(1)]), config_of(home, *given))
    for mine, theirs in zip(ours, expected, strict=True):
        assert np.abs(np.asarray(mine.image).astype(int) - np.asarray(theirs).astype(int)).max() <= 1


def test_several_go_together_with_a_controlnet(home: Path) -> None:
    whole = tiny_flux_pipeline(0, transformer=tiny_flux(guidance_embeds=False))  # so that it sees a negative one, too
    flux_controlnet(whole.transformer).save_pretrained(home / "net")
    save_file(flat(flux_image_prompt_weights(whole.transformer), True), home / "ip.safetensors")
    net = {"controlnets": {"model": str(home / "net"), "image": str(home / "like.png")}}
    one = {"weights": str(home / "ip.safetensors")}
    drawn = []
    for weight in (0.0, 1.0):
        (picture, _) = draw(different([whole]), config_of(home, one, {**one, "weight": weight}, **net))
        drawn.append(np.asarray(picture.image).astype(int))
    assert np.abs(drawn[0] - drawn[1]).max() > 0


def test_those_that_do_not_fit_are_named(home: Path) -> None:
    flux, sd, xl = tiny_flux_pipeline(0), small_pipeline(0), small_sdxl(0)
    save_file(flat(flux_image_prompt_weights(flux.transformer), True), home / "flux.safetensors")
    save_file(flat(image_prompt_weights(sd.unet), False), home / "sd.safetensors")
    encoder(20).save_pretrained(home / "wide")
    mask = {"mask": str(home / "like.png")}
    for whole, one, message in (
        (
            flux,
            {"weights": "sd"},
            "is for 4 attentions that read a width of 32, .* have 2, which read 72",
        ),
        (
            sd,
            {"weights": "flux"},
            "is for 2 attentions .* of 72, and these experts have 4, which read 32",
        ),
        (xl, {"weights": "sd"}, r"sd\.safetensors is for 4 attentions that read a width of 32, .*, which read 64"),
        (
            sd,
            {"weights": "sd", "encoder": "wide"},
            r"encoder: .*sd\.safetensors reads codes of width 12, .* 20 wide",
        ),
        (flux, {"weights": "flux", **mask}, r"image_prompts\.mask is for experts with a U-Net"),
    ):
        given = {**one, "weights": str(home / f"{one['weights']}.safetensors")}
        given |= {"encoder": str(home / one["encoder"])} if "encoder" in one else {}
        with pytest.raises(ValueError, match=message):
            adapted_pipeline(different([whole]), config_of(home, given))
