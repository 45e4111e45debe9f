"""LoRA and LyCORIS files as training programs write them, with random factors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

RANK = 3


def kohya(names: Mapping[str, Sequence[int]], alpha: float = 2.0, seed: int = 0) -> dict[str, Tensor]:
    """LoRA factors in kohya's layout for weights of these shapes, by the modules' names."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, (rows, columns, *kernel) in names.items():
        up = torch.randn(rows, RANK, *[1] * len(kernel), generator=generator)
        down = torch.randn(RANK, columns, *kernel, generator=generator)
        factors = {"lora_up.weight": 0.1 * up, "lora_down.weight": 0.1 * down, "alpha": torch.tensor(alpha)}
        found |= {f"{name}.{end}": tensor for end, tensor in factors.items()}
    return found


def shapes_of(model: nn.Module, ends: Iterable[str], prefix: str = "lora_unet_") -> dict[str, Sequence[int]]:
    """Kohya's names and the weights' shapes of the modules whose paths end so."""
    return {
        prefix + path.replace(".", "_"): tuple(module.weight.shape)
        for path, module in model.named_modules()
        if path.endswith(tuple(ends)) and isinstance(getattr(module, "weight", None), Tensor)
    }


def write(tensors: Mapping[str, Tensor], file: Path, **metadata: str) -> Path:
    """One safetensors file."""
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, metadata=metadata or None)
    return file
