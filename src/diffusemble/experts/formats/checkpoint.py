"""Tensors of a checkpoint, read one by one; fp8 weights with scales come back as what they stand for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffusemble.experts.formats.header import Header
from diffusemble.experts.formats.marks import FP8, MARKER, NOTES, SCALES, quantisation, scaled


class Checkpoint:
    """The tensors of one file by name, without what belongs to their storage.

    Attributes:
        header: of the file.
        shapes: of the tensors.
    """

    def __init__(self, header: Header, opened: Any) -> None:
        self.header = header
        self._opened = opened
        self.shapes = {key: form.shape for key, form in header.forms.items() if not _is_storage(header, key)}

    def read(self, key: str) -> Tensor:
        """One tensor; of a scaled fp8 weight, what it stands for in float32.

        Raises:
            ValueError: fp8 weights are stored in a way that is not known here.
        """
        tensor: Tensor = self._opened.get_tensor(key)
        stem = key.removesuffix(".weight")
        note = f"{stem}.comfy_quant"
        if note in self.header.forms:
            self._check(note)
        scale = next((stem + end for end in SCALES if stem + end in self.header.forms), None)
        if scale is None or self.header.forms[key].dtype not in FP8:
            return tensor
        factor: Tensor = self._opened.get_tensor(scale).float()
        if factor.numel() not in (1, tensor.shape[0]):
            raise ValueError(
                f"the scales {scale!r} have the shape {tuple(factor.shape)}, but only one for each row, or one for all "
                f"of {tuple(tensor.shape)}, is read here. Give the bf16 or fp16 version of the file"
            )
        return tensor.float() * factor.reshape(-1, *[1] * (tensor.ndim - 1))

    def _check(self, note: str) -> None:
        text = bytes(self._opened.get_tensor(note).tolist()).decode(errors="replace")
        try:
            kind = json.loads(text).get("format", "")
        except (ValueError, AttributeError):
            kind = text
        if not kind.startswith("float8"):
            raise ValueError(
                f"{self.header.file} is quantised in the format {kind!r}, which cannot be read here. Give its fp8, "
                f"bf16 or fp16 version."
            )


def refuse_quantised(header: Header) -> None:
    """Raise if the weights of a file are stored in fewer bits than are read here.

    Raises:
        ValueError: they are; says how.
    """
    kind = quantisation(header)
    if kind is not None:
        raise ValueError(
            f"{header.file} is quantised: {kind}, which cannot be read here. Give its fp8, bf16 or fp16 version."
        )


@contextmanager
def open_checkpoint(header: Header) -> Iterator[Checkpoint]:
    """The tensors of a file, as long as the block runs.

    Raises:
        ValueError: the weights are quantised in a way that cannot be read here, or the file is damaged.
    """
    refuse_quantised(header)
    try:
        opened = safe_open(str(header.file), framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{header.file} is damaged ({error}). Copy or download it again.") from error
    with opened:
        yield Checkpoint(header, opened)


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in another number type, if it holds fractions."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _is_storage(header: Header, key: str) -> bool:
    return key.endswith((*NOTES, MARKER)) or scaled(header, key)
