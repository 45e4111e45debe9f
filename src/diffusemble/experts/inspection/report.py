"""What is told about a file or folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusemble.experts.formats.header import Header

NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""Number types by their safetensors names, where torch calls them otherwise."""


@dataclass(frozen=True)
class Part:
    """One part of a model.

    Attributes:
        name: as diffusers calls it, with its class where that is known.
        parameters: how many numbers.
        dtypes: how many numbers of each type.
    """

    name: str
    parameters: int
    dtypes: Mapping[str, int]


@dataclass(frozen=True)
class Report:
    """What a file or folder is.

    Attributes:
        path: as it was given.
        what: in words: ``"SDXL checkpoint"``, ``"LoRA for FLUX.1"``, ...; None where there is only a problem.
        problem: what is wrong with it, and what to do; None where nothing is.
        kind, family, layout: of ``what``, for machines.
        parts: with their sizes.
        prediction: what its denoiser predicts, as far as it can be known.
        size: bytes of the file, or of the weight files of a folder.
        sha256: of the file; None for folders, or if it was not asked for.
        files: SHA-256 of a folder's weight files, by relative path.
        notes: further facts by name, such as the rank of a LoRA or the word of a textual inversion.
        metadata: the texts in a file's header.
        recipe: of a merged model: methods, shares, and inputs with their hashes.
    """

    path: str
    what: str | None = None
    problem: str | None = None
    kind: str | None = None
    family: str | None = None
    layout: str | None = None
    parts: tuple[Part, ...] = ()
    prediction: str | None = None
    size: int | None = None
    sha256: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None

    @property
    def autov2(self) -> str | None:
        """The short hash that model sites show."""
        return None if self.sha256 is None else self.sha256[:10].upper()

    @property
    def parameters(self) -> int:
        """Numbers in all parts."""
        return sum(part.parameters for part in self.parts)


def part_of(name: str, header: Header, keys: list[str]) -> Part:
    """A part that consists of these tensors of a file."""
    counts: dict[str, int] = {}
    for key in keys:
        form = header.forms[key]
        dtype = NAMES.get(form.dtype, form.dtype.lower())
        counts[dtype] = counts.get(dtype, 0) + form.count
    return Part(name, sum(counts.values()), counts)


def joined(name: str, parts: list[Part]) -> Part:
    """Several files of one part."""
    counts: dict[str, int] = {}
    for part in parts:
        for dtype, count in part.dtypes.items():
            counts[dtype] = counts.get(dtype, 0) + count
    return Part(name, sum(counts.values()), counts)
