"""LoRA files as programs of today write them: names, words inside, and families."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapter_files import kohya, shapes_of, write
from diffusemble import load_experts
from diffusemble.experts.additions.names import targets
from diffusemble.experts.formats.contents import contents_of
from diffusemble.experts.formats.header import Form, Header
from diffusemble.experts.inspection.folders import inspect
from tiny import small_pipeline, tiny_sdxl_pipeline
from tiny_dit import tiny_flux

CONV_IN = {"unet.conv_in.diff": torch.ones(8, 4, 3, 3), "unet.conv_in.diff_b": torch.ones(8)}


def test_onetrainer_numbers_the_pieces_of_fused_layers() -> None:
    known = targets({"transformer": tiny_flux()})
    for name, path in {
        "transformer_double_blocks_0_img_attn_qkv_1": "transformer_blocks.0.attn.to_k",
        "transformer_double_blocks_0_txt_attn_qkv_2": "transformer_blocks.0.attn.add_v_proj",
        "transformer_single_blocks_0_linear1_3": "single_transformer_blocks.0.proj_mlp",
    }.items():
        assert [piece for piece, _ in known[name].pieces] == [path]


def test_onetrainer_names_text_encoders_by_what_they_are() -> None:
    pipeline = tiny_sdxl_pipeline()
    known = targets({"text_encoder": pipeline.text_encoder, "text_encoder_2": pipeline.text_encoder_2})
    for start, part in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2")):
        assert known[f"{start}_text_model_encoder_layers_0_mlp_fc1"].part == part


def test_whole_differences_alone_are_an_adapter(models: Path, tmp_path: Path) -> None:
    file = write(CONV_IN, tmp_path / "a.safetensors")
    expert, plain = load_experts([f"{models / 'rock'}+{file}:0.5", models / "rock"])
    for name, tensor in plain.denoiser.state_dict().items():
        step = 0.5 if name.startswith("conv_in.") else 0.0
        assert torch.equal(expert.denoiser.state_dict()[name], tensor + step), name


def test_words_inside_a_lora_are_taught_too(models: Path, tmp_path: Path) -> None:
    vectors = torch.arange(2 * 32.0).reshape(2, 32)
    lora: dict[str, Tensor] = kohya(shapes_of(small_pipeline().unet, ["to_q"]))
    file = write({**lora, "bundle_emb.<cat>.string_to_param.*": vectors}, tmp_path / "cat.safetensors")
    expert, other, alone = load_experts([f"{models / 'rock'}+{file}:0.5", models / "fern", models / "rock"])
    place = expert.components["tokenizer"].get_added_vocab()["<cat>_1"]
    assert torch.equal(expert.components["text_encoder"].get_input_embeddings().weight[place], vectors[1])
    assert "<cat>_1" in other.components["tokenizer"].get_added_vocab()
    before = alone.denoiser.state_dict()
    changed = {key for key, one in expert.denoiser.state_dict().items() if not one.equal(before[key])}
    assert changed == {key for key in before if key.endswith("to_q.weight")}
    (report,) = inspect(file)
    assert (report.what, report.notes["words inside"]) == ("LoRA", "<cat>")
    output = write({**lora, "bundle_emb.cat.clip_l_out": vectors}, tmp_path / "output.safetensors")
    with pytest.raises(ValueError, match=r"stores vectors 'bundle_emb.cat.clip_l_out', which no text encoder reads"):
        load_experts(f"{models / 'rock'}+{output}")


@pytest.mark.parametrize("settings", ["{", "[1]"])
def test_damaged_settings_of_a_lora_are_named(settings: str, models: Path, tmp_path: Path) -> None:
    tensors = {f"unet.mid_block.attentions.0.proj_in.lora_{name}.weight": torch.ones(32, 32) for name in "AB"}
    file = write(tensors, tmp_path / "style.safetensors", lora_adapter_metadata=settings)
    with pytest.raises(ValueError, match=r"style.safetensors: the settings beside its tensors.* are damaged \("):
        load_experts(f"{models / 'rock'}+{file}")


def what(shapes: dict[str, tuple[int, ...]]) -> str:
    return str(contents_of(Header(Path("x"), 0, {key: Form("F16", shape) for key, shape in shapes.items()})))


@pytest.mark.parametrize(
    ("key", "width", "family"),
    [
        ("lora_te2_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight", 8, "FLUX.1"),
        ("lora_unet_transformer_blocks_0_img_mlp_net_2.lora_down.weight", 8, "Qwen-Image"),
        ("transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight", 1536, "SD 3 or 3.5"),
        ("diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight", 3072, "FLUX.1"),
        ("diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight", 6144, "FLUX.2"),
        ("diffusion_model.double_blocks.0.txt_mlp.2.lora_A.weight", 9216, "FLUX.2"),
        ("diffusion_model.single_blocks.0.linear2.lora_A.weight", 16384, "FLUX.2"),
        ("diffusion_model.single_blocks.0.linear2.lora_A.weight", 15360, "FLUX.1"),
        ("diffusion_model.layers.0.attention.to_q.lora_A.weight", 3840, "Z-Image"),
        ("diffusion_model.blocks.0.cross_attn.k.lora_A.weight", 5120, "Wan"),
        ("unet.input_blocks.4.1.transformer_blocks.0.attn2.to_k.lora_down.weight", 768, "SD 1.x"),
        ("unet.input_blocks.4.1.transformer_blocks.0.attn1.to_q.lora_down.weight", 640, "SDXL"),
        ("lora_unet_x_attn2_processor_to_k.hada_w1_b", 2048, "SDXL"),
    ],
)
def test_the_family_of_an_adapter_is_told_by_names_and_widths(key: str, width: int, family: str) -> None:
    assert what({key: (4, width)}).endswith(f" for {family}")


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lllite_unet_input_blocks_4_1.down.0.weight", "a ControlNet"),
        ("input_hint_block.0.weight", "a ControlNet"),
        ("decoder.layers.1.conv.0.weight", "a tiny VAE for previews (TAESD)"),
        ("3.conv.0.weight", "a tiny VAE for previews (TAESD)"),
        ("model.layers.0.self_attn.q_proj.weight", "a text encoder"),
        ("clip_l", "a textual inversion for FLUX.1"),
    ],
)
def test_what_else_lies_about_is_told(key: str, kind: str) -> None:
    other = {"t5": (2, 4096)} if key == "clip_l" else {"moss.weight": (2, 2)}
    assert what({key: (2, 768), **other}) == kind
