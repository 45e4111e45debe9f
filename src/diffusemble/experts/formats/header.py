"""The header of a safetensors file, and what a file is that has none.

The format: the header's length in 8 bytes, the header in JSON with number type, shape and place of every tensor, then
their bytes without gaps. Nothing but the header is read here, so that a file of 20 GB is looked at in a moment.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LENGTH = 8  # bytes
LARGEST = 100_000_000  # bytes; what the safetensors library takes

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
CONVERT = (
    "Look for the .safetensors version of this model, or convert it on a machine or in a container that you can throw "
    "away: torch.load(FILE, weights_only=True) reads tensors and nothing else (docs/loading.md has the command)."
)
_AGAIN = "Copy or download it again."
_ARCHIVES = (b"7z\xbc\xaf\x27\x1c", b"Rar!", b"\x1f\x8b", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"BZh")
_SHOWN = 100  # characters of a text that stands in place of a file


@dataclass(frozen=True)
class Form:
    """What a tensor in a file looks like: number type by its safetensors name (``"F16"``), and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself.

    Attributes:
        file: where it is.
        size: of the whole file, in bytes.
        forms: number type and shape of every tensor by name.
        metadata: the texts in the header.
    """

    file: Path
    size: int
    forms: Mapping[str, Form]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def starting(self, *starts: str) -> Iterator[str]:
        """Names of the tensors that begin with one of ``starts``."""
        return (key for key in self.forms if key.startswith(starts))

    def has(self, *starts: str) -> bool:
        """Whether a tensor's name begins with one of ``starts``."""
        return next(self.starting(*starts), None) is not None

    def width(self, key: str) -> int:
        """Length of a tensor's last axis; 0 where there is none."""
        return (0, *self.shape(key))[-1]

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor; of one that is not there, ``()``."""
        return self.forms[key].shape if key in self.forms else ()


def read_header(file: Path) -> Header:
    """The header of a safetensors file.

    Raises:
        ValueError: the file is missing, cut off, damaged, or of another format, which the message names.
    """
    if not file.is_file():
        raise ValueError(f"{file} is missing. Check the path.")
    size = file.stat().st_size
    if size == 0:
        raise ValueError(f"{file} is empty: a download that never began, or a full disk. {_AGAIN}")
    with file.open("rb") as opened:
        start = opened.read(LENGTH)
        length = int.from_bytes(start, "little")
        fits = len(start) == LENGTH and 2 <= length <= LARGEST
        text = opened.read(length) if fits else b""
    what = disguise(file)
    if what:
        raise ValueError(f"{file} {what}")
    if not fits:
        raise ValueError(f"{file} {_odd_start(file)}. {_AGAIN}")
    if len(text) < length:
        raise ValueError(
            f"{file} is cut off or damaged: its header should have {length:,} bytes, {len(text):,} are there. {_AGAIN}"
        )
    return _parse(file, size, length, text)


def _parse(file: Path, size: int, length: int, text: bytes) -> Header:
    try:
        entries: dict[str, Any] = json.loads(text)
        metadata = {key: str(told) for key, told in (entries.pop("__metadata__", None) or {}).items()}
        forms = {key: Form(str(one["dtype"]), tuple(map(int, one["shape"]))) for key, one in entries.items()}
        end = max((int(one["data_offsets"][1]) for one in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: its header cannot be read ({type(error).__name__}). {_AGAIN}") from error
    whole = LENGTH + length + end
    if size < whole:
        raise ValueError(
            f"{file} is cut off: it has {size:,} bytes, and its header tells of {whole:,}. The download was broken "
            f"off; let it go on, or download it again."
        )
    if size > whole:
        raise ValueError(
            f"{file} is damaged: {size - whole:,} bytes follow the last tensor, and nothing may follow it. {_AGAIN}"
        )
    return Header(file, size, forms, metadata)


def disguise(file: Path) -> str:
    """What a file is by its first bytes, and what to do about it; nothing if it could be a safetensors file."""
    with file.open("rb") as opened:
        start = opened.read(600)
    if _is_header(start):
        return ""  # a header of 640 bytes has the first two bytes of a pickle
    if start[:4] == b"PK\x03\x04":
        if b"data.pkl" not in start and b"byteorder" not in start and b"/version" not in start:
            return "is a zip archive, whatever its name. Unpack it first."
        return f"is a pickle in a zip (torch.save), whatever its name: opening one can run any program. {CONVERT}"
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return f"is a pickle, whatever its name: opening one can run any program hidden in it. {CONVERT}"
    if start[:4] == b"GGUF":
        return (
            "is a GGUF file (quantised, for other programs), which cannot be read here. Give the .safetensors version "
            "of the model; fp8 files are read."
        )
    if start.startswith(_ARCHIVES):
        return "is a packed archive. Unpack it first."
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return (
            "is a web page: the site answered with a page in place of the file, for example because it wants a login. "
            "Download it in a browser where you are logged in, or with a key of the site."
        )
    if text.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS in place of the file. Fetch the file itself: git lfs pull."
    return ""


def misnamed(file: Path) -> str:
    """What a file is whose name does not end like a safetensors file's, and what to do about it."""
    with file.open("rb") as opened:
        start = opened.read(LENGTH + 1)
    if _is_header(start):
        return f"is a safetensors file under another name. Rename it to {file.stem}.safetensors."
    return disguise(file) or f"is a {file.suffix or 'nameless'} file, but models are .safetensors files here."


def _is_header(start: bytes) -> bool:
    return start[LENGTH : LENGTH + 1] == b"{" and int.from_bytes(start[:LENGTH], "little") <= LARGEST


def _odd_start(file: Path) -> str:
    with file.open("rb") as opened:
        start = opened.read(_SHOWN)
    text = " ".join(start.decode(errors="replace").split())
    if not any(start):
        return "is damaged: it begins with zeros, so its download was never finished"
    if text.isprintable() and text.isascii():
        return f"is a text in place of a model, perhaps an error message of a web site: {text!r}"
    return "is damaged: it does not begin like a safetensors file"
