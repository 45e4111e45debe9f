from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusemble import EnsembleDenoiser, load_experts
from diffusemble.experts.layouts.autoencoder import older_vae
from ldm import REFINER, SD1, SD2, SDXL, Layout, save_ldm
from original import assert_equal, original
from tiny import (
    small_pipeline,
    small_unet,
    tiny_refiner,
    tiny_sdxl_pipeline,
    tiny_sdxl_unet,
    tiny_text_encoder,
    tiny_vae,
)


def test_a_complete_file_gives_every_weight_bit_for_bit(models: Path, tmp_path: Path) -> None:
    pipeline = small_pipeline(5, vae=tiny_vae(5))
    (expert,) = load_experts(save_ldm(pipeline, tmp_path / "opal.safetensors"), base=models / "rock")
    assert_equal(expert.denoiser, pipeline.unet)
    assert_equal(expert.components["vae"], pipeline.vae)
    assert_equal(expert.components["text_encoder"], pipeline.text_encoder)
    assert (expert.name, expert.base, list(expert.files)) == ("opal", str(models / "rock"), ["weights"])
    assert expert.denoiser.training is False


def test_the_oldest_names_are_read_too(models: Path, tmp_path: Path) -> None:
    """Text encoders without ``text_model``, and VAEs as older versions of diffusers wrote them."""
    pipeline = small_pipeline(5, vae=tiny_vae(5))
    tensors = load_file(save_ldm(pipeline, tmp_path / "new.safetensors", without=["vae"]))
    bare = {key.replace("transformer.text_model.", "transformer."): tensor for key, tensor in tensors.items()}
    vae = original(pipeline.vae, older_vae, "vae.")
    assert "vae.encoder.mid_block.attentions.0.query.weight" in vae
    save_file({**bare, **vae}, tmp_path / "old.safetensors")
    (expert,) = load_experts(tmp_path / "old.safetensors", base=models / "rock")
    assert_equal(expert.components["text_encoder"], pipeline.text_encoder)
    assert_equal(expert.components["vae"], pipeline.vae)


def sd2() -> Any:
    """One text encoder, in OpenCLIP's layout."""
    return small_pipeline(3, unet=small_unet(3, use_linear_projection=True))


def sdxl() -> Any:
    """Two text encoders of different width, as the real ones are: diffusers tells them apart by it."""
    second = tiny_text_encoder(9, projection=True, hidden_size=48)
    return tiny_sdxl_pipeline(2, text_encoder_2=second, unet=tiny_sdxl_unet(2, cross_attention_dim=80))


def inpainting() -> Any:
    return small_pipeline(4, unet=small_unet(4, in_channels=9))


@pytest.mark.parametrize(
    ("build", "layout"),
    [(sd2, SD2), (sdxl, SDXL), (tiny_refiner, REFINER), (inpainting, SD1)],
    ids=["sd2", "sdxl", "refiner", "inpainting"],
)
def test_other_families_come_bit_for_bit_too(build: Callable[[], Any], layout: Layout, tmp_path: Path) -> None:
    pipeline = build()
    pipeline.save_pretrained(tmp_path / "base")
    (expert,) = load_experts(save_ldm(pipeline, tmp_path / "opal.safetensors", layout), base=tmp_path / "base")
    assert expert.pipeline_class is type(pipeline)
    assert_equal(expert.denoiser, pipeline.unet)
    text = [part for part in ("text_encoder", "text_encoder_2") if getattr(pipeline, part, None) is not None]
    for part in ("vae", *text):
        assert_equal(expert.components[part], getattr(pipeline, part))
    assert list(expert.files) == ["weights"]
    if build is tiny_refiner:
        assert expert.components["requires_aesthetics_score"] is True


def test_what_a_file_lacks_comes_from_the_first_folder_and_is_shared(models: Path, tmp_path: Path) -> None:
    file = save_ldm(small_pipeline(5), tmp_path / "opal.safetensors", without=["vae", "text_encoder"])
    opal, rock, fern = load_experts([file, models / "rock", models / "fern"])
    assert opal.base == str(models / "rock")
    assert opal.components["vae"] is rock.components["vae"]
    assert opal.components["text_encoder"] is rock.components["text_encoder"]
    assert opal.files["base:text_encoder/model.safetensors"] == rock.files["text_encoder/model.safetensors"]
    assert "text_encoder/model.safetensors" not in opal.files
    assert EnsembleDenoiser([opal, rock, fern]).pipeline().vae is rock.components["vae"]


def test_the_base_completes_the_given_part_only(models: Path, tmp_path: Path) -> None:
    pipeline = small_pipeline(5)
    file = save_ldm(pipeline, tmp_path / "opal.safetensors", without=["vae"])
    opal, rock = load_experts([file, models / "rock"], base=models / "fern")
    assert opal.base == str(models / "fern")
    assert rock.base is None
    assert_equal(opal.components["text_encoder"], pipeline.text_encoder)
    assert list(opal.files) == ["weights"]


def test_a_file_of_another_size_is_refused_with_the_base(models: Path, tmp_path: Path) -> None:
    file = save_ldm(small_pipeline(unet=small_unet(cross_attention_dim=48)), tmp_path / "wide.safetensors")
    message = (
        r"wide.safetensors: its unet cannot be read as UNet2DConditionModel with the configuration of .*rock: "
        r"'model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight' has the shape \(8, 48\), "
        r"which does not give \(8, 32\). Give base="
    )
    with pytest.raises(ValueError, match=message):
        load_experts(file, base=models / "rock")


def test_a_file_with_missing_or_left_over_tensors_is_refused(models: Path, tmp_path: Path) -> None:
    pipeline = small_pipeline()
    left_over = {"model.diffusion_model.rock.weight": torch.zeros(2)}
    message = (
        "it has 1 tensors that UNet2DConditionModel does not have there, such as 'model.diffusion_model.rock.weight'"
    )
    with pytest.raises(ValueError, match=message):
        load_experts(save_ldm(pipeline, tmp_path / "opal.safetensors", extra=left_over), base=models / "rock")
    for part, module, name in (
        ("unet", pipeline.unet.conv_in, "model.diffusion_model.input_blocks.0.0.bias"),
        ("text_encoder", pipeline.text_encoder.final_layer_norm, "cond_stage_model.*final_layer_norm.bias"),
        ("vae", pipeline.vae.encoder.conv_in, "first_stage_model.encoder.conv_in.bias"),
    ):
        bias, module.bias = module.bias, None
        file = save_ldm(pipeline, tmp_path / f"{part}.safetensors")
        module.bias = bias
        with pytest.raises(
            ValueError, match=rf"{part}.safetensors: its {part} cannot .*: it lacks the tensor '{name}'"
        ):
            load_experts(file, base=models / "rock")


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        (
            "lora_unet_mid_attn2_to_k.lora_up.weight",
            (8, 8),
            r"It is a LoRA. It goes on top of a model: model.safetensors\+",
        ),
        ("lora_unet_mid.hada_w1_a", (8, 8), r"It is a LyCORIS. It goes on top of a model"),
        (
            "control_model.out.weight",
            (8, 8),
            r"It is a ControlNet. It goes to ensemble.pipeline\(cls, controlnet=...\)",
        ),
        ("decoder.conv_in.weight", (8, 8), r"It is a VAE. It goes with a model: .* or vae= for all experts"),
        ("text_model.embeddings.token_embedding.weight", (8, 8), r"It is a text encoder. Give a full checkpoint"),
        ("emb_params", (1, 768), r"It is a textual inversion for SD 1.x. It goes on top of a model"),
        ("ip_adapter.1.to_k_ip.weight", (8, 8), r"It is an IP-Adapter. Give a full checkpoint"),
        (
            "rock.weight",
            (8, 8),
            "What it is cannot be told from its names. Give a full checkpoint, or a diffusers folder",
        ),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, key: str, shape: tuple[int, ...], message: str) -> None:
    others = {} if key == "emb_params" else {"moss.weight": torch.zeros(2, 2)}
    save_file({key: torch.zeros(shape), **others}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=rf"other.safetensors is no checkpoint of a text-to-image model. {message}"):
        load_experts(tmp_path / "other.safetensors")


def test_a_checkpoint_of_a_family_that_is_not_supported_is_named(tmp_path: Path) -> None:
    names = ("double_stream_blocks.0.block.attn1.to_q.weight", "x_embedder.proj.weight")
    save_file({f"model.diffusion_model.{name}": torch.zeros(2) for name in names}, tmp_path / "other.safetensors")
    with pytest.raises(
        ValueError, match=r"is a HiDream checkpoint, and of this family no single files are read. Families that"
    ):
        load_experts(tmp_path / "other.safetensors")


def test_the_base_must_be_one_folder(models: Path, tmp_path: Path) -> None:
    file = save_ldm(small_pipeline(), tmp_path / "opal.safetensors")
    for base in (file, "zoo:topics"):
        with pytest.raises(ValueError, match="A base must be one diffusers folder, hub id or zoo model; got"):
            load_experts(file, base=base)


def test_without_base_and_network_the_message_says_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    file = save_ldm(small_pipeline(), tmp_path / "opal.safetensors")
    with pytest.raises(
        ValueError,
        match=r"is an SD 1.x checkpoint; without base= its .* stable-diffusion-v1-5/.*Give base= .* lacks\.$",
    ):
        load_experts(file)
