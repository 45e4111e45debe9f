"""A LyCORIS file with several formulas at once, in a real expert."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from adapter_files import write
from diffusemble import load_experts

BLOCK = "mid_block.attentions.0.transformer_blocks.0.attn1"
HADAMARD, KRONECKER = f"{BLOCK}.to_q", f"{BLOCK}.to_k"
NORM, CONVOLUTION = "mid_block.resnets.0.norm1", "mid_block.resnets.0.conv1"
SHAPES = {
    HADAMARD: {"hada_w1_a": (16, 2), "hada_w1_b": (2, 16), "hada_w2_a": (16, 2), "hada_w2_b": (2, 16)},
    KRONECKER: {"lokr_w1": (2, 2), "lokr_w2": (8, 8)},
    NORM: {"w_norm": (16,), "b_norm": (16,)},
    CONVOLUTION: {"diff": (16, 16, 3, 3), "diff_b": (16,)},
}


def test_a_file_mixes_formulas(models: Path, tmp_path: Path) -> None:
    (plain,) = load_experts(models / "rock")
    before = {key: tensor.clone() for key, tensor in plain.denoiser.state_dict().items()}
    generator = torch.Generator().manual_seed(2)
    drawn = {
        module: {name: torch.randn(shape, generator=generator) for name, shape in factors.items()}
        for module, factors in SHAPES.items()
    }
    tensors = {
        f"lycoris_{module.replace('.', '_')}.{name}": tensor
        for module, factors in drawn.items()
        for name, tensor in factors.items()
    }
    tensors[f"lycoris_{HADAMARD.replace('.', '_')}.alpha"] = torch.tensor(3.0)
    (expert,) = load_experts(f"{models / 'rock'}+{write(tensors, tmp_path / 'mixed.safetensors')}:0.5")
    one, two = drawn[HADAMARD], drawn[KRONECKER]
    steps: dict[str, Tensor] = {
        f"{HADAMARD}.weight": 3 / 2 * (one["hada_w1_a"] @ one["hada_w1_b"]) * (one["hada_w2_a"] @ one["hada_w2_b"]),
        f"{KRONECKER}.weight": torch.kron(two["lokr_w1"], two["lokr_w2"]),
        f"{NORM}.weight": drawn[NORM]["w_norm"],
        f"{NORM}.bias": drawn[NORM]["b_norm"],
        f"{CONVOLUTION}.weight": drawn[CONVOLUTION]["diff"],
        f"{CONVOLUTION}.bias": drawn[CONVOLUTION]["diff_b"],
    }
    for key, tensor in expert.denoiser.state_dict().items():
        assert torch.allclose(tensor, before[key] + 0.5 * steps.get(key, torch.zeros(1)), atol=1e-5), key
