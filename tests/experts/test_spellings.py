"""Files as newer and older programs than the makers' own spell them: the same tensors under other names."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adapter_files import kohya, shapes_of, write
from diffusemble import load_experts
from diffusemble.experts.additions.names import targets
from diffusemble.experts.inspection.folders import inspect
from diffusemble.experts.layouts.autoencoder import vae
from diffusemble.experts.layouts.flux import chroma, flux, flux2
from ldm import SD2, SDXL, save_ldm
from original import assert_equal, original
from tiny import small_pipeline, small_unet, tiny_sdxl_pipeline, tiny_vae
from tiny_dit import tiny_chroma_pipeline, tiny_flux_pipeline
from tiny_flux2 import tiny_flux2_pipeline
from tiny_qwen import tiny_qwen, tiny_qwen_pipeline
from tiny_z_image import tiny_z_image, tiny_z_image_pipeline

PAGE = Path(__file__).parents[2] / "docs" / "loading.md"

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # diffusers about Chroma


def test_sdxls_second_projection_may_be_a_linear_layer(tmp_path: Path) -> None:
    """As diffusers' script writes it: its weight lies the other way round."""
    pipeline = tiny_sdxl_pipeline(5)
    tiny_sdxl_pipeline(0).save_pretrained(tmp_path / "base")
    tensors = load_file(save_ldm(pipeline, tmp_path / "plain.safetensors", SDXL))
    name = "conditioner.embedders.1.model.text_projection"
    tensors[f"{name}.weight"] = tensors.pop(name).T
    (expert,) = load_experts(write(tensors, tmp_path / "opal.safetensors"), base=tmp_path / "base")
    assert_equal(expert.components["text_encoder_2"], pipeline.text_encoder_2)


def test_a_vae_may_have_diffusers_names_in_its_attention(models: Path, tmp_path: Path) -> None:
    pipeline = small_pipeline(5, vae=tiny_vae(5))
    tensors = load_file(save_ldm(pipeline, tmp_path / "plain.safetensors"))
    renamed = {re.sub(r"attn_1\.([qkv])\.", r"attn_1.to_\1.", key): tensor for key, tensor in tensors.items()}
    renamed = {key.replace("attn_1.proj_out.", "attn_1.to_out.0."): tensor for key, tensor in renamed.items()}
    assert len(renamed.keys() - tensors.keys()) == 16  # encoder and decoder, weights and biases
    (expert,) = load_experts(write(renamed, tmp_path / "opal.safetensors"), base=models / "rock")
    assert_equal(expert.components["vae"], pipeline.vae)


@pytest.mark.parametrize("norms", [r"_norm\.scale$", r"\.scale$"])
@pytest.mark.parametrize(
    ("build", "layout"), [(tiny_flux_pipeline, flux), (tiny_chroma_pipeline, chroma), (tiny_flux2_pipeline, flux2)]
)
def test_norms_may_have_weights(build: Callable[[int], Any], layout: Any, norms: str, tmp_path: Path) -> None:
    build(0).save_pretrained(tmp_path / "base")
    transformer = build(1).transformer
    end = norms.removesuffix("$").replace("\\", "")
    tensors = {
        re.sub(norms, end.replace("scale", "weight"), key): tensor
        for key, tensor in original(transformer, layout, "model.diffusion_model.").items()
    }
    assert any(key.endswith("query_norm.weight") for key in tensors)
    file = write(tensors, tmp_path / "opal.safetensors")
    (expert,) = load_experts(file, base=tmp_path / "base")
    assert_equal(expert.denoiser, transformer)


@pytest.mark.parametrize("alone", [True, False])
def test_flux2s_vae_is_read_as_its_makers_write_it(alone: bool, tmp_path: Path) -> None:
    tiny_flux2_pipeline(0).save_pretrained(tmp_path / "base")
    other = tiny_flux2_pipeline(1)
    for weight in other.vae.parameters():
        weight.data += 0.1
    inside = {
        re.sub(r"^(post_)?quant_conv", lambda found: f"{'decoder' if found[1] else 'encoder'}.{found[0]}", key): tensor
        for key, tensor in original(other.vae, vae).items()
    }
    assert {"encoder.quant_conv.weight", "decoder.post_quant_conv.weight"} <= inside.keys()
    if alone:
        file = write(inside, tmp_path / "vae.safetensors")
        (expert,) = load_experts(f"{tmp_path / 'base'}+{file}")
    else:
        tensors = original(other.transformer, flux2) | {f"vae.{key}": tensor for key, tensor in inside.items()}
        (expert,) = load_experts(write(tensors, tmp_path / "opal.safetensors"), base=tmp_path / "base")
        assert_equal(expert.denoiser, other.transformer)
    assert_equal(expert.components["vae"], other.vae)


def test_a_vae_of_an_unread_layout_leaves_its_place_to_the_bases(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tiny_qwen_pipeline(0)
    base.save_pretrained(tmp_path / "base")
    transformer = tiny_qwen(1)
    tensors = {f"model.diffusion_model.{key}": tensor for key, tensor in transformer.state_dict().items()}
    tensors |= {"vae.conv1.weight": torch.zeros(2, 2), "vae.decoder.head.0.gamma": torch.zeros(2)}
    (expert,) = load_experts(write(tensors, tmp_path / "opal.safetensors"), base=tmp_path / "base")
    assert_equal(expert.denoiser, transformer)
    assert_equal(expert.components["vae"], base.vae)
    assert "opal.safetensors holds a VAE in a layout that is not read here" in caplog.text


def test_the_text_encoder_of_sd2_may_lie_where_sdxls_do(tmp_path: Path) -> None:
    """As in SD-Turbo's file."""
    pipeline = small_pipeline(3, unet=small_unet(3, use_linear_projection=True))
    small_pipeline(4, unet=small_unet(4, use_linear_projection=True)).save_pretrained(tmp_path / "base")
    tensors = load_file(save_ldm(pipeline, tmp_path / "plain.safetensors", SD2))
    moved = {
        key.replace("cond_stage_model.model.", "conditioner.embedders.0.model."): one for key, one in tensors.items()
    }
    file = write(moved, tmp_path / "opal.safetensors")
    (expert,) = load_experts(file, base=tmp_path / "base")
    assert_equal(expert.components["text_encoder"], pipeline.text_encoder)
    reports = [*inspect(file), *inspect(tmp_path / "plain.safetensors")]
    names = [[part.name for part in report.parts] for report in reports]
    assert names[0] == names[1]
    assert "text_encoder" in names[0]


def test_a_file_that_does_not_tell_what_it_predicts_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = small_pipeline(3, unet=small_unet(3, use_linear_projection=True))
    pipeline.save_pretrained(tmp_path / "base")
    tensors = load_file(save_ldm(pipeline, tmp_path / "silent.safetensors", SD2))
    marked = write({**tensors, "v_pred": torch.zeros(0)}, tmp_path / "marked.safetensors")
    silent = tmp_path / "silent.safetensors"
    said = "does not tell whether it predicts v or noise"
    for sources, base, told in (
        ([silent, tmp_path / "base"], None, True),
        ([marked, tmp_path / "base"], None, False),
        ([silent], tmp_path / "base", False),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            load_experts(sources, base=base)
        assert (said in caplog.text) is told, sources


def test_a_quantised_file_is_refused_before_its_base_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    tensors = original(tiny_flux_pipeline(0).transformer, flux) | {"x.SCB": torch.zeros(3)}
    with pytest.raises(ValueError, match="is quantised: int8"):
        load_experts(write(tensors, tmp_path / "small.safetensors"))


def test_a_layer_that_a_lora_holds_whole_and_in_pieces_is_changed_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_z_image_pipeline(0).save_pretrained(tmp_path / "base")
    start = "lora_unet_layers_0_attention_"
    model = tiny_z_image(0)
    pieces = kohya(shapes_of(model, [f"layers.0.attention.to_{one}" for one in ("q", "k", "v", "out.0")]))
    down = pieces[f"{start}to_q.lora_down.weight"]
    ups = [pieces[f"{start}to_{one}.lora_up.weight"] for one in "qkv"]
    for one in "kv":
        pieces[f"{start}to_{one}.lora_down.weight"] = down.clone()
    whole = {
        f"{start}qkv.lora_down.weight": down,
        f"{start}qkv.lora_up.weight": torch.cat(ups),
        f"{start}qkv.alpha": torch.tensor(2.0),
    }
    whole |= {
        f"{start}out.{end}": pieces[f"{start}to_out_0.{end}"] for end in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    found = []
    for name, tensors in (("pieces", pieces), ("whole", whole), ("both", {**whole, **pieces})):
        file = write({key: tensor.clone() for key, tensor in tensors.items()}, tmp_path / f"{name}.safetensors")
        (expert,) = load_experts(f"{tmp_path / 'base'}+{file}")
        found.append(expert.denoiser.state_dict())
        assert ("holds 2 modules twice" in caplog.text) is (name == "both")
    before = model.state_dict()
    assert sum(not torch.equal(one, before[key]) for key, one in found[0].items()) == 4
    for key, one in found[0].items():
        torch.testing.assert_close(found[1][key], one)
        torch.testing.assert_close(found[2][key], one)


@pytest.mark.parametrize("end", ["emb_params", "*", "string_to_param.*"])
def test_words_may_be_bundled_under_any_of_their_names(end: str, models: Path, tmp_path: Path) -> None:
    vectors = torch.arange(2 * 32.0).reshape(2, 32)
    lora: dict[str, Tensor] = kohya(shapes_of(small_pipeline().unet, ["to_q"]))
    file = write({**lora, f"bundle_emb.by.cat.{end}": vectors}, tmp_path / "cat.safetensors")
    (expert,) = load_experts(f"{models / 'rock'}+{file}:0.5")
    place = expert.components["tokenizer"].get_added_vocab()["by.cat_1"]
    assert torch.equal(expert.components["text_encoder"].get_input_embeddings().weight[place], vectors[1])


@pytest.mark.parametrize("start", ["lora_te3_", "t5_", "text_encoders_t5xxl_transformer_"])
def test_chromas_t5_has_the_names_that_t5_has_elsewhere(start: str) -> None:
    pipeline = tiny_chroma_pipeline(0)
    known = targets({"text_encoder": pipeline.text_encoder})
    assert known[f"{start}encoder_block_0_layer_0_SelfAttention_q"].part == "text_encoder"


def test_words_in_a_pickle_are_converted_by_the_command_on_the_page(models: Path, tmp_path: Path) -> None:
    """As AUTOMATIC1111's web UI writes them."""
    vectors = torch.arange(2 * 32.0).reshape(2, 32)
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "moss"}, tmp_path / "moss.pt")
    found = re.search(r"<<'END'\n(.*?)\nEND", PAGE.read_text(), re.DOTALL)
    assert found is not None
    files = [str(tmp_path / "moss.pt"), str(tmp_path / "moss.safetensors")]
    subprocess.run([sys.executable, "-", *files], input=found[1], text=True, check=True)
    (expert,) = load_experts(f"{models / 'rock'}+{files[1]}")
    place = expert.components["tokenizer"].get_added_vocab()["moss_1"]
    assert torch.equal(expert.components["text_encoder"].get_input_embeddings().weight[place], vectors[1])
