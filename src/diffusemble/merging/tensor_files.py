"""Safetensors files one tensor at a time.

``safetensors`` itself maps a file into memory, so that what was read stays there, and writes a whole model at once.
Here memory holds the one tensor in hand. The format: the header's length in 8 bytes, the header in JSON with number
type, shape and place of every tensor, then their bytes without gaps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffusemble.experts.checksums import check_readable

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH = 8  # bytes


@dataclass(frozen=True)
class Form:
    """What a tensor looks like."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFile:
    """A safetensors file that is read tensor by tensor.

    Attributes:
        forms: number type and shape of every tensor, in the order they lie in the file.
        metadata: the texts in its header.

    Raises:
        ValueError: the file is missing, cut off or damaged, or has a number type that torch lacks.
    """

    def __init__(self, path: Path) -> None:
        check_readable(path)
        self.path = path
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
            header = json.loads(file.read(length))
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        placed = sorted(header.items(), key=lambda entry: entry[1]["data_offsets"])
        self.forms = {key: self._form(key, entry) for key, entry in placed}
        self._starts = {key: _LENGTH + length + entry["data_offsets"][0] for key, entry in placed}

    def read(self, key: str) -> Tensor:
        """One tensor, on the CPU.

        Raises:
            ValueError: the file has become shorter.
        """
        form = self.forms[key]
        data = torch.empty(form.size, dtype=torch.uint8)
        view, done = data.numpy().data, 0
        with self.path.open("rb", buffering=0) as file:
            file.seek(self._starts[key])
            while done < form.size:  # a single read gives 2 GiB at most
                count = file.readinto(view[done:])
                if not count:
                    raise ValueError(f"{self.path} ends within {key!r}: it changed while it was read. Copy it again.")
                done += count
        return data.view(form.dtype).reshape(form.shape)

    def _form(self, key: str, entry: Mapping[str, object]) -> Form:
        dtype, shape = entry["dtype"], entry["shape"]
        if dtype not in DTYPES or not isinstance(shape, list):
            raise ValueError(
                f"{self.path}: {key!r} holds numbers of type {dtype}, which cannot be merged. Give a version of the "
                f"model in one of: {', '.join(DTYPES)}."
            )
        return Form(DTYPES[str(dtype)], tuple(shape))


def write_tensors(
    path: Path, forms: Mapping[str, Form], make: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, with one tensor in memory at a time.

    Args:
        path: the file.
        forms: number type and shape of every tensor.
        make: gives the tensor of a name; called once for each.
        metadata: texts for the header.

    Raises:
        ValueError: ``make`` gave something else than announced.
        OSError: the file cannot be written.
    """
    # Wide numbers first, as readers map the file and need every tensor to start at a multiple of its number's size.
    keys = sorted(forms, key=lambda key: -forms[key].dtype.itemsize)
    with path.open("wb") as file:
        file.write(_header(keys, forms, metadata))
        for key in keys:
            tensor = make(key)
            if Form(tensor.dtype, tuple(tensor.shape)) != forms[key]:
                raise ValueError(
                    f"{key!r} was announced as {forms[key]}, but came as {tensor.dtype} {tuple(tensor.shape)}. This is "
                    f"a fault of the merging method."
                )
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _header(keys: list[str], forms: Mapping[str, Form], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for key in keys:
        form = forms[key]
        entries[key] = {
            "dtype": _NAMES[form.dtype],
            "shape": list(form.shape),
            "data_offsets": [start, start + form.size],
        }
        start += form.size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH)
    return len(text).to_bytes(_LENGTH, "little") + text
