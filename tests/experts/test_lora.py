"""LoRA and LyCORIS files on top of experts, against diffusers and peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model

from adapter_files import kohya, shapes_of, write
from diffusemble import load_experts
from diffusemble.experts.folder import quiet
from ldm import SD1, save_ldm
from ldm import unet as ldm_unet
from original import original
from tiny import small_pipeline, tiny_sdxl_pipeline
from tiny_dit import tiny_flux_pipeline, tiny_sd3_pipeline

LINEAR = ("attn2.to_k", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTIONS = ("conv1", "conv_shortcut", "time_emb_proj")
TEXT = ("q_proj", "out_proj", "fc1")


def assert_close(mine: Any, other: Any, but: Any = None) -> None:
    """Equal weights; where ``but`` is given, different from that."""
    theirs, moved = other.state_dict(), 0.0
    before = None if but is None else but.state_dict()
    assert mine.state_dict().keys() == theirs.keys()
    for key, tensor in mine.state_dict().items():
        assert torch.allclose(tensor, theirs[key], rtol=1e-5, atol=1e-6), key
        moved += 0 if before is None else float((tensor - before[key]).abs().sum())
    assert but is None or moved > 1


def fused(pipeline: Any, file: Path, amount: float) -> Any:
    """What diffusers makes of it."""
    with quiet():
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="style")
        pipeline.fuse_lora(components=pipeline._lora_loadable_modules, lora_scale=amount)
        pipeline.unload_lora_weights()
    return pipeline


@pytest.fixture(scope="module")
def rock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "rock"
    small_pipeline(0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def style(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kohya file for ``rock``: attention, convolutions and text encoder."""
    pipeline = small_pipeline(0)
    names = {
        **shapes_of(pipeline.unet, (*LINEAR, *CONVOLUTIONS)),
        **shapes_of(pipeline.text_encoder, TEXT, "lora_te_text_model_"),
    }
    return write(kohya(names), tmp_path_factory.mktemp("loras") / "style.safetensors")


def test_kohyas_names_mean_what_they_mean_to_diffusers(rock: Path, style: Path) -> None:
    theirs = fused(StableDiffusionPipeline.from_pretrained(rock), style, 0.7)
    expert, plain = load_experts([f"{rock}+{style}:0.7", rock])
    assert_close(expert.denoiser, theirs.unet, but=plain.denoiser)
    assert_close(expert.components["text_encoder"], theirs.text_encoder, but=plain.components["text_encoder"])
    assert expert.name == "rock+style"
    assert expert.source == f"{rock}+{style}:0.7"
    assert "+style.safetensors:0.7" in expert.files


def test_names_of_the_original_code_mean_what_they_mean_to_diffusers(tmp_path: Path) -> None:
    pipeline = tiny_sdxl_pipeline(0)
    pipeline.save_pretrained(tmp_path / "base")
    ends = tuple(end.replace(".", "_") for end in (*LINEAR, "in_layers.2", "emb_layers.1"))
    shapes = {
        key.removesuffix(".weight").replace(".", "_"): tuple(t.shape) for key, t in ldm_unet(pipeline.unet).items()
    }
    names = {f"lora_unet_{name}": shape for name, shape in shapes.items() if name.endswith(ends) and len(shape) > 1}
    names |= shapes_of(pipeline.text_encoder, TEXT, "lora_te1_text_model_")
    names |= shapes_of(pipeline.text_encoder_2.text_model, TEXT, "lora_te2_text_model_")
    file = write(kohya(names), tmp_path / "style.safetensors")
    theirs = fused(StableDiffusionXLPipeline.from_pretrained(tmp_path / "base"), file, 0.6)
    (expert,) = load_experts(f"{tmp_path / 'base'}+{file}:0.6")
    assert_close(expert.denoiser, theirs.unet, but=pipeline.unet)
    for part in ("text_encoder", "text_encoder_2"):
        assert_close(expert.components[part], getattr(theirs, part), but=getattr(pipeline, part))


@pytest.mark.parametrize("build", [small_pipeline, tiny_flux_pipeline, tiny_sd3_pipeline])
def test_what_diffusers_and_peft_saved_comes_back(build: Any, tmp_path: Path) -> None:
    pipeline = build(0)
    pipeline.save_pretrained(tmp_path / "base")
    part = "unet" if hasattr(pipeline, "unet") else "transformer"
    denoiser = getattr(pipeline, part)
    targets = ["to_q", "add_k_proj", "proj_mlp", "to_out.0"] if part == "transformer" else ["to_q", "to_out.0"]
    denoiser.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False))
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    layers = get_peft_model_state_dict(denoiser)
    if part == "unet":
        layers = convert_state_dict_to_diffusers(layers)  # as diffusers' training scripts do
    settings = {f"{part}_lora_adapter_metadata": denoiser.peft_config["default"].to_dict()}
    type(pipeline).save_lora_weights(tmp_path, **{f"{part}_lora_layers": layers}, **settings)
    denoiser.delete_adapters("default")
    theirs = fused(pipeline, tmp_path / "pytorch_lora_weights.safetensors", 0.5)
    expert, plain = load_experts(
        [f"{tmp_path / 'base'}+{tmp_path / 'pytorch_lora_weights.safetensors'}:0.5", tmp_path / "base"]
    )
    assert_close(expert.denoiser, getattr(theirs, part), but=plain.denoiser)


def test_a_file_of_peft_with_settings_beside_it_is_read(models: Path, tmp_path: Path) -> None:
    (plain,) = load_experts(models / "rock")
    patterns = {"rank_pattern": {"attn2.to_q": 6}, "alpha_pattern": {"attn2.to_q": 5}}
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["to_q"], init_lora_weights=False, **patterns
    )
    adapted = get_peft_model(plain.denoiser, config)
    adapted.save_pretrained(tmp_path)
    (expert,) = load_experts(f"{models / 'rock'}+{tmp_path / 'adapter_model.safetensors'}")
    assert_close(expert.denoiser, adapted.merge_and_unload(), but=load_experts(models / "rock")[0].denoiser)


@pytest.mark.parametrize("build", [tiny_flux_pipeline, tiny_sd3_pipeline])
@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
def test_a_file_by_original_names_is_a_change_of_the_original_file(build: Any, prefix: str, tmp_path: Path) -> None:
    """Queries, keys and values are one matrix there, and the last modulation has its halves the other way round."""
    from diffusemble.experts.layouts.flux import flux
    from diffusemble.experts.layouts.sd3 import sd3

    pipeline = build(0)
    pipeline.save_pretrained(tmp_path / "base")
    layout = flux if build is tiny_flux_pipeline else sd3
    state = original(pipeline.transformer, layout)
    matrices = {
        key.removesuffix(".weight"): tensor
        for key, tensor in state.items()
        if tensor.ndim == 2 and key.endswith(".weight")
    }
    spelled = {name: prefix + (name.replace(".", "_") if prefix.endswith("_") else name) for name in matrices}
    file = write(
        kohya({spelled[name]: tuple(one.shape) for name, one in matrices.items()}), tmp_path / "style.safetensors"
    )
    tensors = kohya({spelled[name]: tuple(one.shape) for name, one in matrices.items()})
    for name in matrices:
        up, down = (tensors[f"{spelled[name]}.lora_{which}.weight"] for which in ("up", "down"))
        state[f"{name}.weight"] = state[f"{name}.weight"] + 2.0 / 3 * up @ down
    whole = write(
        {f"model.diffusion_model.{key}": tensor for key, tensor in state.items()}, tmp_path / "whole.safetensors"
    )
    expert, changed = load_experts([f"{tmp_path / 'base'}+{file}", whole])
    assert_close(expert.denoiser, changed.denoiser, but=pipeline.transformer)


def test_weight_zero_changes_no_bit_and_two_weights_add_up(rock: Path, style: Path) -> None:
    plain, none, twice, once = load_experts(
        [rock, f"{rock}+{style}:0", f"{rock}+{style}:0.25+{style}:0.5", f"{rock}+{style}:0.75"]
    )
    for part in ("denoiser", "text_encoder"):
        models = [one.denoiser if part == "denoiser" else one.components[part] for one in (plain, none, twice, once)]
        unchanged = models[1].state_dict()
        assert all(torch.equal(tensor, unchanged[key]) for key, tensor in models[0].state_dict().items())
        assert_close(models[2], models[3], but=models[0])
    assert plain.components["text_encoder"] is none.components["text_encoder"]
    assert {"+style.safetensors:0.25", "+style.safetensors:0.5"} <= set(twice.files)


def test_a_single_file_takes_one_too_and_shares_what_it_does_not_change(rock: Path, tmp_path: Path) -> None:
    pipeline = small_pipeline(0)
    model = save_ldm(pipeline, tmp_path / "opal.safetensors", SD1, without=["vae", "text_encoder"])
    only = write(kohya(shapes_of(pipeline.unet, ["to_q"])), tmp_path / "only.safetensors")
    expert, plain = load_experts([f"{model}+{only}:-0.5", rock])
    assert_close(expert.denoiser, expert.denoiser, but=plain.denoiser)
    assert expert.components["text_encoder"] is plain.components["text_encoder"]


def test_a_file_for_another_family_is_refused(rock: Path, tmp_path: Path) -> None:
    sdxl = tiny_sdxl_pipeline(0)
    names = shapes_of(sdxl.unet, ["attn2.to_k"]) | shapes_of(sdxl.text_encoder, ["fc1"], "lora_te1_text_model_")
    file = write(
        kohya({**names, "lora_te2_text_model_encoder_layers_0_mlp_fc1": (37, 32)}), tmp_path / "xl.safetensors"
    )
    message = (
        r"xl.safetensors is a LoRA for SDXL and does not fit this UNet2DConditionModel with text_encoder \(\d+ of its"
    )
    with pytest.raises(ValueError, match=message):
        load_experts(f"{rock}+{file}")
    flux = write(kohya({"lora_unet_double_blocks_0_img_attn_qkv": (9, 3)}), tmp_path / "flux.safetensors")
    with pytest.raises(
        ValueError, match=r"is a LoRA for FLUX.1 and does not fit .*none of its modules is in the model"
    ):
        load_experts(f"{rock}+{flux}")


def test_a_file_of_other_shapes_is_refused(rock: Path, tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    file = write(kohya({name: (48, 48)}), tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match=rf"'{name}': its difference is \(48, 48\), the weight \(16, 16\)"):
        load_experts(f"{rock}+{file}")
    factors = kohya({name: (32, 32)})
    del factors[f"{name}.lora_down.weight"]
    half = write(factors, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match="the factor 'down' is missing beside up"):
        load_experts(f"{rock}+{half}")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("double_blocks.0.processor.qkv_lora1.down.weight", "is a LoRA in the layout of XLabs"),
        ("lora_unet_conv_in.rock", "has a tensor 'lora_unet_conv_in.rock', which belongs to no kind of LoRA"),
    ],
)
def test_kinds_that_are_not_known_are_refused_by_name(rock: Path, tmp_path: Path, key: str, message: str) -> None:
    tensors = {key: torch.zeros(2, 2), "lora_unet_conv_in.lora_up.weight": torch.zeros(2, 2)}
    file = write(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=message):
        load_experts(f"{rock}+{file}")
