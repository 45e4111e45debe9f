"""MIGC's sizes and files, and the errors of its conditions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from diffusemble.controls.attachment import cross_attentions
from diffusemble.controls.base import ControlledUNet
from diffusemble.controls.convert import convert
from diffusemble.controls.migc import Migc, MigcCondition, migc_condition
from tiny import LENGTH, WIDTH, randomised, tiny_pipeline, tiny_unet

BOX = (0.0, 0.1, 0.5, 0.8)


@pytest.fixture(scope="module")
def control() -> Migc:
    torch.manual_seed(2)
    return randomised(Migc.from_unet(tiny_unet(), slots=5, hidden=9, heads=4, reduction=4))


def told(n: int = 2, **changes: Any) -> MigcCondition:
    parts = {"text": torch.zeros(n, 5, WIDTH), "pooled": torch.zeros(n, WIDTH), "boxes": torch.tensor([BOX] * n)}
    return MigcCondition(**{**parts, "height": 64, "width": 64, **changes})


def same(one: Migc, other: Migc) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    sizes = [[layer.sizes for layer in control.layers] for control in (one, other)]
    return (
        one.names == other.names
        and sizes[0] == sizes[1]
        and all(mine[0] == theirs[0] and torch.equal(mine[1], theirs[1]) for mine, theirs in pairs)
    )


def published(control: Migc, infix: str) -> dict[str, torch.Tensor]:
    """The control's weights under the names of the published checkpoint, whose part after the block is not known."""
    blocks = ("middle_block.1", *(f"output_blocks.{number}.1" for number in (3, 4, 5)))
    return {
        f"model.diffusion_model.{block}.{infix}migc.{key}": tensor
        for block, layer in zip(blocks, control.layers, strict=True)
        for key, tensor in layer.state_dict().items()
    }


def test_the_file_gives_the_same_control(control, tmp_path):
    control.save_pretrained(tmp_path / "migc.safetensors")
    assert same(Migc.from_pretrained(tmp_path / "migc.safetensors"), control)
    key = "up_blocks.1.attentions.2.transformer_blocks.0.attn2.migc.sac.cbam2.ChannelGate.mlp.1.weight"
    assert load_file(tmp_path / "migc.safetensors")[key].shape == (5, 5)


@pytest.mark.parametrize("infix", ["", "transformer_blocks.0.attn2."])
def test_the_published_layout(tmp_path, infix):
    torch.manual_seed(1)
    wide = randomised(Migc.from_unet(tiny_unet(), slots=5, hidden=9, heads=8, reduction=4))
    save_file(published(wide, infix), tmp_path / "MIGC_SD14.safetensors")
    assert same(Migc.from_pretrained(tmp_path / "MIGC_SD14.safetensors"), wide)


def test_a_pickle_is_refused_and_can_be_converted(control, tmp_path):
    pickled = tmp_path / "MIGC_SD14.ckpt"
    torch.save({"state_dict": published(control, ""), "step": 3}, pickled)
    with pytest.raises(ValueError, match=r"python -m diffusemble.controls.convert .*MIGC_SD14.ckpt"):
        Migc.from_pretrained(pickled)
    convert(pickled, tmp_path / "migc.safetensors")
    loaded = Migc.from_pretrained(tmp_path / "migc.safetensors")
    assert torch.equal(loaded.layers[2].ea.to_q.weight, control.layers[2].ea.to_q.weight)


def test_other_files_are_refused(control, tmp_path):
    file = tmp_path / "other.safetensors"
    save_file({"unet.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="holds no weights of MIGC: none of its 1 tensors"):
        Migc.from_pretrained(file)
    weights = published(control, "")
    for key in ("la.to_q.weight", "norm.weight"):
        save_file({name: tensor for name, tensor in weights.items() if not name.endswith(f"3.1.migc.{key}")}, file)
        with pytest.raises(ValueError, match=rf"{key}' is missing"):
            Migc.from_pretrained(file)
    save_file({**weights, "model.diffusion_model.middle_block.1.migc.extra": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"extra' is unknown"):
        Migc.from_pretrained(file)


def test_sizes_of_the_published_weights():
    with torch.device("meta"):
        control = Migc.from_unet(UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8))
    counts = [sum(weight.numel() for weight in layer.parameters()) for layer in control.layers]
    assert counts == [14_341_977] * 4
    assert round(4 * sum(counts) / 2**20, 2) == 218.84
    assert control.names == tuple(
        f"{block}.transformer_blocks.0.attn2"
        for block in ("mid_block.attentions.0", *(f"up_blocks.1.attentions.{index}" for index in range(3)))
    )
    assert len(control.layers[0].state_dict()) == 32


def test_layers_can_be_chosen():
    unet = tiny_unet()
    names = Migc.from_unet(
        unet, layers=("up_blocks.2.attentions.1", "down_blocks.0"), slots=4, heads=4, reduction=4
    ).names
    assert names == tuple(
        name for name in cross_attentions(unet) if name.startswith(("down_blocks.0", "up_blocks.2.attentions.1."))
    )
    with pytest.raises(ValueError, match=r"No cross-attention of the U-Net lies in 'up_blocks.0'. It has: down_blocks"):
        Migc.from_unet(unet, layers=("up_blocks.0",))
    for wrong in ({"heads": 5}, {"reduction": 64}, {"slots": 2}):
        with pytest.raises(ValueError, match=r"channels that divide by the heads.* got 32 channels"):
            Migc.from_unet(unet, **{"heads": 4, "reduction": 4, **wrong})


def run(unet: Any, control: Migc, condition: Any, text: int = WIDTH, rows: int = 1) -> None:
    model = ControlledUNet(unet, [control], guided=False)
    with torch.no_grad():
        model(torch.zeros(rows, 4, 8, 8), 981, torch.zeros(rows, 7, text), cross_attention_kwargs={"migc": condition})


def test_calls_that_do_not_fit(control):
    unet = tiny_unet()
    cases = {
        r"have 5 slots, so at most 3 instances in slots from 0; got 4": told(4),
        r"the last in slot 3": told(1, slots=torch.tensor([3])),
        r"Slots are \[n\], or \[4 n\] for this MIGC's layers; got \[2, 1\]": told(1, slots=torch.tensor([[0], [1]])),
        r"32 wide, and pooled ones 32 wide; got 32 and 9": told(pooled=torch.zeros(2, 9)),
        r"got 8 and 32": told(text=torch.zeros(2, 5, 8)),
        r"for 64 x 72 pixels, and latents of 8 x 8 came": told(height=72),
        r"takes a MigcCondition .*; got a str": ("a cat", "a dog"),
        r"2 conditions \(MigcCondition\) came for 1 pictures": [told(), told()],
    }
    for message, condition in cases.items():
        with pytest.raises(ValueError, match=message):
            run(unet, control, condition)
    with pytest.raises(ValueError, match=r"got \(until, fuse_until\) of \[\(0.5, 0.0\), \(0.6, 0.0\)\]"):
        run(unet, control, [told(), told(until=0.6)], rows=2)
    with pytest.raises(ValueError, match=r"cross-attention mid_block.* of 32 channels, and the U-Net has none"):
        run(tiny_unet(block_out_channels=(16, 16, 16, 16)), control, told())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooled": torch.zeros(1, WIDTH)}, r"got the shapes \[\(2, 5, 32\), \(1, 32\), \(2, 4\)\]"),
        ({"boxes": torch.tensor([BOX, (0.0, 0.0, 0.5, 1.5)])}, r"0 to 1; that of instance 2"),
        ({"boxes": torch.tensor([BOX, (0.6, 0.0, 0.5, 1.0)])}, r"instance 2 is .* x1 >= x2"),
        ({"boxes": torch.tensor([BOX, (0.5, 0.0, 0.51, 1.0)])}, r"instance 2 is smaller than a pixel of 64 x 64"),
        ({"slots": torch.tensor([1, 1])}, r"n different numbers from 0, .* for 2 instances; got \[\[1, 1\]\]"),
        ({"fuse_until": 25}, r"fuse_until is a share of the schedule, 0 to 1; got 25"),
        ({"text_scale": (1.0,)}, r"text_scale has one value for all instances or one each; got 1 for 2"),
    ],
)
def test_conditions_that_are_none(changes, message):
    with pytest.raises(ValueError, match=message):
        told(**changes)


def test_phrases_are_read_by_the_pipeline():
    pipe = tiny_pipeline()
    condition = migc_condition(pipe, [("cat", BOX), ("red", BOX)], until=0.3)
    tokens = pipe.tokenizer("red", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = pipe.text_encoder(tokens)
    assert torch.allclose(condition.text[1:], expected.last_hidden_state, atol=1e-5)
    assert torch.allclose(condition.pooled[1:], expected.pooler_output, atol=1e-5)
    assert (condition.until, condition.height, condition.width) == (0.3, 16, 16)
    assert replace(condition, until=0.4).text is condition.text
    empty = migc_condition(pipe, [])
    assert (empty.text.shape, empty.boxes.shape) == ((0, LENGTH, WIDTH), (0, 4))


def test_phrases_can_be_repeated():
    pipe = tiny_pipeline()
    repeated = migc_condition(pipe, [("a", BOX), ("b", BOX)], repeat_phrases=True)
    spelled = migc_condition(pipe, [("a, and a", BOX), ("b, and b", BOX)])
    assert torch.equal(repeated.text, spelled.text)


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ([("cat", BOX), (" ", BOX)], "that of instance 2 is empty"),
        ([("cat", (0, 0, 2, 1))], "that of 'cat' is"),
        ([("much too long a phrase", BOX)], "reads 16 tokens, and 'much too long a phrase' has 20. Shorten"),
    ],
)
def test_instances_that_are_none(instances, message):
    with pytest.raises(ValueError, match=message):
        migc_condition(tiny_pipeline(), instances)
