"""Files of gated controls: every published layout is read, and what is wrong with one is said."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusemble.controls import Gligen, Interaction, plain_unet
from diffusemble.controls.convert import convert, main
from diffusemble.controls.gated_control import GatedControl
from diffusemble.controls.interaction import InteractionProjection
from diffusemble.controls.layouts import SD1_BLOCKS, ldm_to_diffusers
from gated_cases import HIDDEN, opened
from tiny import WIDTH, tiny_unet

HEADS = 8  # of every Stable Diffusion 1.x U-Net; files do not say it
Layout = Callable[[dict[str, Tensor], dict[str, Tensor], Path], Path]


@pytest.fixture(scope="module")
def unet() -> Any:
    return tiny_unet(attention_head_dim=HEADS)


@pytest.fixture(scope="module")
def control(unet: Any) -> Any:
    return opened(Interaction, unet)


def original_names(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Names of the original code: ``input_blocks.1.1...`` for ``down_blocks.0.attentions.0...``."""
    blocks = [f"input_blocks.{n}.1" for n in (1, 2, 4, 5, 7, 8)] + ["middle_block.1"]
    blocks += [f"output_blocks.{n}.1" for n in range(3, 12)]
    names = {ldm_to_diffusers(block): block for block in blocks}
    renamed = {}
    for key, tensor in weights.items():
        place = next((place for place in names if key.startswith(place)), None)
        renamed[prefix + (key if place is None else names[place] + key.removeprefix(place))] = tensor
    return renamed


def folder(base: dict[str, Tensor], own: dict[str, Tensor], at: Path) -> Path:
    config = {**tiny_unet(attention_head_dim=HEADS).config, "attention_type": "gated"}
    (at / "unet").mkdir(parents=True)
    config["_class_name"] = "InteractDiffusionUNet2DConditionModel"
    (at / "unet" / "config.json").write_text(json.dumps(config))
    save_file({**base, **own}, at / "unet" / "diffusion_pytorch_model.safetensors")
    return at


def half_folder(base: dict[str, Tensor], own: dict[str, Tensor], at: Path) -> Path:
    file = folder(base, own, at) / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    return at / "unet"


def one_file(base: dict[str, Tensor], own: dict[str, Tensor], at: Path) -> Path:
    return folder(base, own, at) / "unet" / "diffusion_pytorch_model.safetensors"


def adapter(base: dict[str, Tensor], own: dict[str, Tensor], at: Path) -> Path:
    save_file(own, at.with_suffix(".safetensors"))
    return at.with_suffix(".safetensors")


def original_adapter(base: dict[str, Tensor], own: dict[str, Tensor], at: Path) -> Path:
    return adapter(base, original_names(own, "model.diffusion_model."), at)


def pickled_checkpoint(base: dict[str, Tensor], own: dict[str, Tensor], at: Path) -> Path:
    whole = {"input_blocks.0.0.weight": torch.zeros(2), **original_names(own, "")}
    torch.save({"model": whole, "autoencoder": {"x": torch.zeros(1)}, "config_dict": {"steps": 3}}, at)
    convert(at, at.with_suffix(".safetensors"))
    return at.with_suffix(".safetensors")


def same(read: nn.Module, weights: dict[str, Tensor]) -> None:
    found = read.state_dict()
    assert found.keys() == weights.keys()
    assert [key for key, tensor in weights.items() if not torch.equal(found[key], tensor)] == []


@pytest.mark.parametrize("layout", [folder, half_folder, one_file, adapter, original_adapter, pickled_checkpoint])
def test_every_published_layout_is_read(unet: Any, control: Any, tmp_path: Path, layout: Layout):
    source = layout(unet.state_dict(), control.state_dict(), tmp_path / "published")
    read = Interaction.from_pretrained(source)
    assert read.sizes == control.sizes
    same(read, control.state_dict())
    assert not read.training


@pytest.mark.parametrize("kind", [Interaction, Gligen])
def test_what_is_saved_is_read(kind: type[GatedControl], tmp_path: Path):
    control = opened(kind, tiny_unet())  # four heads: the header says so
    control.save_pretrained(tmp_path / "control.safetensors")
    read = kind.from_pretrained(tmp_path / "control.safetensors", dtype=torch.float16)
    assert read.sizes == control.sizes
    assert {tensor.dtype for tensor in read.state_dict().values()} == {torch.float16}
    same(read, control.half().state_dict())
    assert all(parameter.requires_grad for parameter in read.parameters())


def test_the_plain_network_of_a_folder(unet: Any, control: Any, tmp_path: Path):
    source = folder(unet.state_dict(), control.state_dict(), tmp_path / "published")
    read = plain_unet(source)
    assert not [name for name, _ in read.named_modules() if "fuser" in name or "position_net" in name]
    same(read, unet.state_dict())


def without(key: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda own: {name: tensor for name, tensor in own.items() if name != key}


def with_(**more: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda own: {**own, **{key.replace("__", "."): tensor for key, tensor in more.items()}}


LAST = f"{SD1_BLOCKS[-1]}.fuser"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(f"{LAST}.norm1.bias"), rf"the tensor '{LAST}.norm1.bias' is missing"),
        (without(f"{LAST}.linear.weight"), rf"lacks {LAST}.linear.weight.*sixteen blocks"),
        (without("position_net.null_action_feature"), "'position_net.null_action_feature' is missing"),
        (without("position_net.linears.0.weight"), "lacks position_net.linears.0.weight"),
        (without("position_net.interaction_embedding.emb.weight"), "interaction_embedding.emb.weight' is missing"),
        (with_(position_net__more=torch.zeros(1)), "'position_net.more' is unknown"),
        (
            with_(adapter__weight=torch.zeros(1)),
            "1 tensors that belong neither to gated layers .* such as adapter.weight",
        ),
        (with_(x__position_net__null_action_feature=torch.zeros(1)), "holds position_net.null_action_feature twice"),
        (with_(position_net__null_action_feature=torch.zeros(7)), r"has the shape \(7,\), expected \(32,\)"),
        (lambda own: {"conv_in.weight": torch.zeros(1)}, "holds no gated layers: none of its 1 tensors"),
    ],
)
def test_a_file_that_does_not_fit_is_explained(control: Any, tmp_path: Path, change: Any, message: str):
    file = adapter({}, change(control.state_dict()), tmp_path / "changed")
    with pytest.raises(ValueError, match=message):
        Interaction.from_pretrained(file)


def test_another_kind_is_refused(control: Any, tmp_path: Path):
    control.save_pretrained(tmp_path / "control.safetensors")
    with pytest.raises(ValueError, match="a control of the kind 'interaction', not 'gligen'"):
        Gligen.from_pretrained(tmp_path / "control.safetensors")


def test_no_pickle_is_opened(tmp_path: Path):
    (tmp_path / "weights.pth").write_bytes(b"cposix\nsystem\n")
    with pytest.raises(ValueError, match=r"can run code .*controls.convert .*weights.pth .*weights.safetensors"):
        Interaction.from_pretrained(tmp_path / "weights.pth")
    (tmp_path / "unet").mkdir()
    with pytest.raises(ValueError, match=r"is no U-Net of diffusers: it needs config.json"):
        Interaction.from_pretrained(tmp_path)
    (tmp_path / "unet" / "config.json").write_text("{}")
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"as a pickle.*Convert it: .*model.bin .*model.safetensors"):
        Interaction.from_pretrained(tmp_path)


def test_a_conversion_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save({"model": {"weight": torch.ones(2)}, "other": Path("x")}, tmp_path / "unsafe.pth")
    with pytest.raises(ValueError, match=r"unsafe.pth cannot be read without running code from it"):
        convert(tmp_path / "unsafe.pth", tmp_path / "safe.safetensors")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match=r"empty.pth holds no tensors"):
        convert(tmp_path / "empty.pth", tmp_path / "safe.safetensors")
    assert not (tmp_path / "safe.safetensors").exists()
    assert main([str(tmp_path / "none.pth"), "safe.safetensors"]) == 1
    assert "There is no file" in capsys.readouterr().err
    assert main([]) == 2


def test_the_command_converts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shared = torch.arange(4.0)
    torch.save({"a": {"b": shared}, "c": shared}, tmp_path / "x.pth")
    assert main([str(tmp_path / "x.pth"), str(tmp_path / "x.safetensors")]) == 0
    assert capsys.readouterr().out.endswith("x.safetensors: 2 tensors\n")
    assert load_file(tmp_path / "x.safetensors").keys() == {"a.b", "c"}


def test_the_published_sizes():
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)  # diffusers' defaults are those of Stable Diffusion 1.x
        control = Interaction.from_unet(unet)
    assert sorted(control.sizes.blocks) == sorted(SD1_BLOCKS)
    assert len(SD1_BLOCKS) == 16
    assert {heads for _, heads in control.sizes.blocks.values()} == {HEADS}
    counts = {"position_net": 0, "fuser": 0}
    for name, parameter in control.named_parameters():
        counts["fuser" if ".fuser." in name else "position_net"] += parameter.numel()
    assert counts == {"position_net": 2_193_216, "fuser": 208_018_272}
    tensors = {**unet.state_dict(), **control.state_dict()}
    assert len(tensors) == 975
    assert file_size(tensors, "F32") == 4_279_053_400
    assert file_size(tensors, "F16") == 2_139_588_048


def file_size(tensors: dict[str, Tensor], dtype: str) -> int:
    """Bytes of a safetensors file: length of the header, header padded to eight bytes, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end, width = 0, {"F32": 4, "F16": 2}[dtype]
    for key in sorted(tensors):
        start, end = end, end + tensors[key].numel() * width
        header[key] = {"dtype": dtype, "shape": list(tensors[key].shape), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return struct.calcsize("Q") + length + -length % 8 + end


def test_published_tokens_have_the_names_and_shapes_of_the_model():
    net = InteractionProjection(text=768, token=768, hidden=512, slots=30)
    shapes = {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}
    linear = {
        f"{net}.{place}.{kind}": shape
        for net in ("linears", "linear_action")
        for place, weight in ((0, (512, 832)), (2, (512, 512)), (4, (768, 512)))
        for kind, shape in (("weight", weight), ("bias", weight[:1]))
    }
    nothing = {"null_positive_feature": (768,), "null_action_feature": (768,), "null_position_feature": (64,)}
    numbered = {"interaction_embedding.emb.weight": (30, 768), "position_embedding.emb.weight": (3, 768)}
    assert shapes == {**linear, **nothing, **numbered}


def test_a_file_of_another_size_says_its_sizes(unet: Any, tmp_path: Path):
    control = Interaction.from_unet(unet, text=20, hidden=HIDDEN, slots=3)
    read = Interaction.from_pretrained(adapter({}, control.state_dict(), tmp_path / "own"))
    assert (read.sizes.text, read.sizes.token, read.sizes.hidden, read.sizes.slots) == (20, WIDTH, HIDDEN, 3)
