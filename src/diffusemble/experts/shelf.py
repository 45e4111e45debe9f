"""Parts of models that have been read, so that several experts from one folder or base read them once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from diffusemble.experts.checksums import DENOISERS, folder_checksums
from diffusemble.experts.folder import NOTHING, index_of, locate, open_folder
from diffusemble.experts.sources import Source


class Shelf:
    """What has been read so far, in one number type.

    Args:
        dtype: of all weights.

    Raises:
        ValueError: it is no number type of torch.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"dtype must be one of torch's number types, such as torch.float16; got {dtype!r}.")
        self.dtype = dtype
        self._parts: dict[tuple[str, str | None], dict[str, nn.Module]] = {}
        self._checksums: dict[tuple[str, tuple[str, ...]], dict[str, str]] = {}

    def open(self, where: str, revision: str | None = None, instead: Mapping[str, Any] = NOTHING) -> DiffusionPipeline:
        """A folder's or hub id's pipeline; its text encoders and VAE are those of the last time it was opened.

        Args:
            where: the folder or hub id.
            revision: of a hub repository.
            instead: parts that stand in the place of the folder's, which are not read then.

        Raises:
            ValueError: it cannot be opened.
        """
        known = self._parts.setdefault((where, revision), {})
        pipeline = open_folder(where, self.dtype, revision=revision, given={**known, **instead})
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module) and name not in DENOISERS and name not in instead:
                known.setdefault(name, part)
        return pipeline

    def checksums(self, base: Source, without: tuple[str, ...]) -> dict[str, str]:
        """SHA-256 of the files that a base gives; none for one on the hub, which is pinned by its commit."""
        if base.kind == "hub":
            return {}
        folder, _ = locate(base)
        key = (str(folder), without)
        if key not in self._checksums:
            index = index_of(str(folder), None)
            self._checksums[key] = folder_checksums(folder, index, skip=without)
        return self._checksums[key]
