"""Weights of controls on disk: one safetensors file each, whose header says what the tensors do not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

HEADER_KEY = "diffusemble.control"


def write_control(weights: Mapping[str, Tensor], file: str | Path, header: Mapping[str, Any]) -> None:
    """Write tensors and a header to one ``.safetensors`` file."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    save_file(tensors, str(file), metadata={HEADER_KEY: json.dumps(dict(header))})


def read_control(file: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a ``.safetensors`` file; the header is empty in files of others.

    Args:
        file: what ``write_control`` or somebody else wrote.

    Raises:
        ValueError: the file is missing, damaged or no safetensors file.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"There is no file {file}. Give the path of a control's .safetensors file.")
    if file.suffix != ".safetensors":
        raise ValueError(
            f"{file} is no .safetensors file, and other formats of weights can run code when they are opened. Convert "
            f"it without that: python -m diffusemble.controls.convert {file} {file.with_suffix('.safetensors')}"
        )
    try:
        with safe_open(str(file), framework="pt") as opened:
            header = json.loads((opened.metadata() or {}).get(HEADER_KEY, "{}"))
            return {key: opened.get_tensor(key) for key in opened.keys()}, header  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a readable safetensors file ({error}). Copy or download it again.") from error


def read_pickled(file: str | Path) -> dict[str, Tensor]:
    """Tensors of a pickled checkpoint, read without running code from it; names of nested parts are joined by dots.

    Raises:
        ValueError: the file holds anything but tensors and plain values.
    """
    if not Path(file).is_file():
        raise ValueError(f"There is no file {file}. Give the path of a checkpoint.")
    try:
        loaded = torch.load(str(file), map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{file} cannot be read without running code from it ({str(error).splitlines()[0]}). Ask its author for a "
            f".safetensors file, or convert it where nothing can be harmed."
        ) from error
    return dict(_tensors(loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else {}, ""))


def _tensors(parts: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Tensor]]:
    for key, value in parts.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{key}.")


def fill(module: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Load weights that must fit a module exactly.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    expected = module.state_dict()
    for key in sorted(expected.keys() ^ weights.keys()):
        problem = "is missing" if key in expected else "is unknown"
        raise ValueError(f"{source}: the tensor {key!r} {problem}. Copy, download or convert the file again.")
    for key, tensor in weights.items():
        if tensor.shape != expected[key].shape:
            raise ValueError(
                f"{source}: {key!r} has the shape {tuple(tensor.shape)}, expected {tuple(expected[key].shape)}."
            )
    module.load_state_dict(weights)
