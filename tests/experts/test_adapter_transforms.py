"""GLoRA, (IA)³, OFT and BOFT: numbers of LyCORIS 3.4, and dense matrices against what a real expert computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapter_files import write
from diffusemble import load_experts
from diffusemble.experts.additions.formulas import difference
from diffusemble.experts.additions.lora import add_lora
from diffusemble.experts.formats.header import read_header
from diffusemble.experts.inspection.folders import inspect
from tiny import small_unet
from tiny_dit import tiny_flux_pipeline


def wave(*shape: int) -> Tensor:
    return torch.sin(torch.arange(1.0, torch.Size(shape).numel() + 1)).reshape(shape)


COLUMN, MATRIX = torch.arange(1.0, 17).reshape(16, 1), torch.arange(1.0, 7).reshape(2, 3)
RESCALE = {"rescale": 1 + wave(16, 1) / 2}
GLORA = {"a1": wave(3, 2), "a2": wave(2, 3), "b1": wave(2, 2), "b2": wave(2, 3)}
# What lycoris-lora 3.4.0 merges with these factors.
TURNED = "1.0271 -2.0675 2.7066 -2.853 -2.8864 -0.374 -14.4435 7.4526 6.3576 -6.8325 3.922 -11.992 -24.1443 11.1967 "
LITTLE = "2.2389 1.5722 5.2376 0.9656 1.1618 5.127 1.3411 17.2039 14.9327 3.9569 7.9529 2.3334 2.3649 28.1361 8.2888 "
BUTTERFLY = "12.239 5.9793 -11.7301 0.3733 7.9063 -8.5602 -9.294 -26.2115 -0.3696 -5.2464 9.1351 -3.0373 13.9051 "


@pytest.mark.parametrize(
    ("weight", "factors", "alpha", "merged"),
    [
        (COLUMN, {"oft_blocks": wave(4, 4, 4), **RESCALE}, 0.0, TURNED + "-23.7107 7.247"),
        (COLUMN, {"oft_blocks": wave(4, 4, 4), **RESCALE}, 0.1, LITTLE + "18.1394"),
        (COLUMN, {"oft_blocks": wave(3, 4, 4, 4), **RESCALE}, None, BUTTERFLY + "11.1396 2.3094 -1.8483"),
        (MATRIX, GLORA, 1.0, "0.8182 1.8412 3.0102 4.328 5.5365 6.2517"),
        (MATRIX, {"scale": wave(2), "on_input": torch.tensor(0)}, None, "1.8415 3.6829 5.5244 7.6372 9.5465 11.4558"),
        (MATRIX, {"scale": wave(3), "on_input": torch.tensor(1)}, None, "1.8415 3.8186 3.4234 7.3659 9.5465 6.8467"),
    ],
    ids=["oft", "oft-limited", "boft", "glora", "ia3", "ia3-inputs"],
)
def test_a_weight_becomes_what_lycoris_makes_of_it(
    weight: Tensor, factors: dict[str, Tensor], alpha: float | None, merged: str
) -> None:
    whole = weight + difference(weight, factors, alpha)
    expected = torch.tensor([float(number) for number in merged.split()])
    torch.testing.assert_close(whole.flatten(), expected, atol=1e-4, rtol=1e-4)


def test_early_glora_files_have_their_factors_the_other_way_round() -> None:
    turned = {"a1": GLORA["a2"], "a2": GLORA["a1"], "b1": GLORA["b2"], "b2": GLORA["b1"]}
    assert torch.equal(difference(MATRIX, turned), difference(MATRIX, GLORA))


def cayley(block: Tensor) -> Tensor:
    skew = block - block.T
    return torch.linalg.solve((torch.eye(len(skew)) - skew).T, (torch.eye(len(skew)) + skew).T).T


def butterfly(blocks: Tensor) -> Tensor:
    """Every level as one matrix: which output goes where, the blocks, and back."""
    size = blocks.shape[1] * blocks.shape[2]
    whole = torch.eye(size)
    for level, own in enumerate(blocks):
        apart = 2**level * blocks.shape[2] // 2
        order = [
            start + half * apart + place
            for start in range(0, size, 2 * apart)
            for place in range(apart)
            for half in (0, 1)
        ]
        moved = torch.eye(size)[order]
        whole = moved.T @ torch.block_diag(*map(cayley, own)) @ moved @ whole
    return whole


BLOCK = "mid_block.attentions.0.transformer_blocks.0"
OFT, BOFT, GROUPED = f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn1.to_k", "mid_block.resnets.0.conv1"
SQUARE = (OFT, GROUPED)
OUTPUTS, INPUTS, LOW, KERNEL = f"{BLOCK}.attn1.to_v", f"{BLOCK}.attn2.to_q", f"{BLOCK}.attn2.to_k", "conv_in"


def factors() -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(3)
    unet = small_unet()
    sizes = {path: unet.get_submodule(path).weight.shape for path in (*SQUARE, LOW, KERNEL)}
    (out, into), (first, start) = sizes[LOW], sizes[KERNEL][:2]
    wide = sizes[OFT][0]
    return {
        OFT: {"oft_blocks": torch.randn(4, wide // 4, wide // 4), "rescale": torch.rand(wide, 1)}
        | {"alpha": torch.tensor(0.0)},
        BOFT: {"oft_blocks": torch.randn(3, wide // 4, 4, 4)},
        GROUPED: {"oft_blocks": torch.randn(2, wide // 2, wide // 2)},
        OUTPUTS: {"weight": torch.rand(wide), "on_input": torch.tensor(False)},
        INPUTS: {"weight": torch.rand(wide), "on_input": torch.tensor(True)},
        LOW: {"a1.weight": torch.randn(into, 2), "a2.weight": torch.randn(2, into)}
        | {"b1.weight": torch.randn(out, 2), "b2.weight": torch.randn(2, into)},
        KERNEL: {"a1.weight": torch.randn(start, 2, 1, 1), "a2.weight": torch.randn(2, start, 1, 1)}
        | {"b1.weight": torch.randn(first, 2, 1, 1), "b2.weight": torch.randn(2, start, 3, 3)}
        | {"alpha": torch.tensor(3.0)},
    }


def dense(path: str, weight: Tensor, own: dict[str, Tensor]) -> Tensor:
    """The new weight of a module, with matrices for everything."""
    rows = weight.flatten(1)
    if path in (OFT, GROUPED):
        scale = own.get("rescale", torch.ones(1, 1))
        return (scale * (torch.block_diag(*map(cayley, own["oft_blocks"])).T @ rows)).reshape(weight.shape)
    if path == BOFT:
        return butterfly(own["oft_blocks"]) @ weight
    if path == OUTPUTS:
        return torch.diag(1 + own["weight"]) @ weight
    if path == INPUTS:
        return weight @ torch.diag(1 + own["weight"])
    a, b = ([own[f"{name}{number}.weight"].flatten(1) for number in "12"] for name in "ab")
    columns = torch.kron(a[0] @ a[1], torch.eye(rows.shape[1] // a[0].shape[0]))  # of every place of the kernel
    return weight + float(own.get("alpha", 2.0)) / 2 * (rows @ columns + b[0] @ b[1]).reshape(weight.shape)


def test_a_file_of_all_four_computes_what_dense_matrices_compute(models: Path, tmp_path: Path) -> None:
    tensors = {
        f"lycoris_{path.replace('.', '_')}.{name}": tensor
        for path, own in factors().items()
        for name, tensor in own.items()
    }
    file = write(tensors, tmp_path / "all.safetensors")
    changed, half, plain = load_experts([f"{models / 'rock'}+{file}", f"{models / 'rock'}+{file}:0.5", models / "rock"])
    for name, before in plain.denoiser.named_modules():
        if name in factors():
            whole, middle = changed.denoiser.get_submodule(name), half.denoiser.get_submodule(name)
            sides = (1, before.weight.shape[1], *[5] * (before.weight.ndim - 2))
            given, aimed = torch.randn(sides), dense(name, before.weight.detach(), factors()[name])
            compute: Any = nn.functional.conv2d if before.weight.ndim == 4 else nn.functional.linear
            options = {"padding": 1} if before.weight.ndim == 4 else {}
            torch.testing.assert_close(
                whole(given), compute(given, aimed, before.bias, **options), atol=2e-5, rtol=1e-4
            )
            torch.testing.assert_close(middle.weight, (before.weight + aimed) / 2, atol=1e-5, rtol=1e-4)
        elif isinstance(getattr(before, "weight", None), Tensor):
            assert torch.equal(before.weight, changed.denoiser.get_submodule(name).weight), name
    (report,) = inspect(file)
    assert report.kind == "LyCORIS"
    assert set(report.notes["formulas"].split(", ")) == {"OFT", "BOFT", "(IA)³", "GLoRA"}
    assert report.notes["modules"] == "7 of the denoiser"


def test_rotations_of_fused_weights_come_in_pieces(tmp_path: Path) -> None:
    pipeline = tiny_flux_pipeline(0)
    pipeline.save_pretrained(tmp_path / "base")
    blocks = [0.3 * torch.randn(2, 12, 12) for _ in range(3)]
    start = "oft_unet_double_blocks_1_img_attn_qkv."
    pieces = {f"{start}oft_blocks.{number}": one for number, one in enumerate(blocks)}
    file = write({**pieces, f"{start}alpha": torch.tensor(0.02)}, tmp_path / "turned.safetensors")
    (expert,) = load_experts(f"{tmp_path / 'base'}+{file}")
    for name, block in zip("qkv", blocks, strict=True):
        path = f"transformer_blocks.1.attn.to_{name}"
        skew = block - block.mT
        whole = torch.block_diag(*(skew * min(1.0, 0.02 * 24 / float(skew.norm()))))
        turn = (torch.eye(24) + whole) @ torch.linalg.inv(torch.eye(24) - whole)
        expected = turn.T @ pipeline.transformer.get_submodule(path).weight
        torch.testing.assert_close(expert.denoiser.get_submodule(path).weight, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "own",
    [
        {"oft_blocks": torch.ones(3, 4, 4)},
        {"weight": torch.ones(31), "on_input": torch.tensor(0)},
        {"a1.weight": torch.ones(31, 2), "a2.weight": torch.ones(2, 31)}
        | {"b1.weight": torch.ones(32, 2), "b2.weight": torch.ones(2, 32)},
    ],
    ids=["oft", "ia3", "glora"],
)
def test_factors_of_other_sizes_are_refused(tmp_path: Path, own: dict[str, Tensor]) -> None:
    module = f"lycoris_{OFT.replace('.', '_')}"
    file = write({f"{module}.{name}": tensor for name, tensor in own.items()}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=rf"odd.safetensors is a LyCORIS and does not fit .*'{module}': "):
        add_lora({"unet": small_unet()}, read_header(file), 1.0)


@pytest.mark.parametrize(
    ("end", "what"),
    [
        ("oft_R.weight", "an OFT of peft or of early LyCORIS, whose rotations follow from settings that it lacks"),
        ("boft_R", "a BOFT of peft"),
        ("ia3_l", "an .IA.³ of peft, whose files do not tell outputs from inputs"),
        ("bm.weight", "a GLoRA with kernels"),
        ("vera_lambda_b", "a VeRA, whose random matrices are not in the file"),
    ],
)
def test_kinds_that_a_file_tells_too_little_of_are_refused_with_the_reason(tmp_path: Path, end: str, what: str) -> None:
    key = f"unet.conv_in.{end}"
    file = write({key: torch.ones(2, 2)}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=rf"is {what}.*; its tensor '{key}' cannot be read here. Give a LoRA, or"):
        add_lora({"unet": small_unet()}, read_header(file), 1.0)
