"""Small checkpoints in the layout of the original Stable Diffusion code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

IN00 = "model.diffusion_model.input_blocks.0.0.weight"
M00 = "model.diffusion_model.middle_block.0.in_layers.0.bias"
OUT11 = "model.diffusion_model.output_blocks.11.0.out_layers.3.weight"
TEXT = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
PLACES = "cond_stage_model.transformer.text_model.embeddings.position_ids"
REST = [
    *(f"model.diffusion_model.input_blocks.{number}.0.bias" for number in range(1, 12)),
    *(f"model.diffusion_model.output_blocks.{number}.0.bias" for number in range(11)),
]
SHAPES = {IN00: (4, 3, 3, 3), M00: (5,), OUT11: (7, 2), TEXT: (6, 3), **dict.fromkeys(REST, (2,))}


def weights(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random tensors, and one that holds counts."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in SHAPES.items()}
    return {**drawn, PLACES: torch.arange(3)[None] + seed}


def checkpoint(file: Path, seed: int, changes: Mapping[str, Tensor | None] | None = None) -> str:
    """A file with ``weights(seed)``; ``changes`` replaces tensors, or leaves them out."""
    tensors = {**weights(seed), **(changes or {})}
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, file, {"format": "pt"})
    return str(file)
