"""Encoded data on disk: numbered safetensors shards in a folder named after a hash of what they were made from.

Shards are memory-mapped, so a set larger than memory works and a small one stays in the page cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from diffusemble.training.files import replace_file

COMPLETE = "complete.json"


@dataclass(frozen=True)
class Encoded:
    """One shard: tensors whose first axis counts samples, and JSON notes about them."""

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]


class Rows:
    """Rows of one tensor that lies in several shards; ``rows[[3, 5]]`` is ``[2 ...]``."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._starts = [0]
        for part in self._parts:
            self._starts.append(self._starts[-1] + len(part))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, indices: Iterable[int]) -> Tensor:
        found = []
        for index in indices:
            shard = bisect_right(self._starts, index) - 1
            found.append(self._parts[shard][index - self._starts[shard]])
        return torch.stack(found)


@dataclass(frozen=True)
class Shelf:
    """A complete set of shards: rows by tensor name, and the shards' notes in order."""

    rows: Mapping[str, Rows]
    notes: tuple[Mapping[str, Any], ...]


class Cache:
    """Shards of one data set, written once and read ever after.

    Args:
        root: folder of all caches.
        kind: what is cached (``latents``, ``text``).
        inputs: texts that together decide the content; any change makes a new folder.
    """

    def __init__(self, root: Path, kind: str, *inputs: str) -> None:
        self.key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:20]
        self.folder = root / f"{kind}-{self.key}"

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return (self.folder / COMPLETE).is_file()

    def has(self, number: int) -> bool:
        """Whether shard ``number`` is there: what was encoded before a kill is not encoded again."""
        return self._file(number).is_file()

    def write(self, number: int, shard: Encoded) -> None:
        """Write one shard, all of it or nothing."""
        data = save(dict(shard.tensors), metadata={"notes": json.dumps(shard.notes)})
        replace_file(self._file(number), data)

    def finish(self, count: int) -> None:
        """Declare ``count`` shards to be all."""
        replace_file(self.folder / COMPLETE, json.dumps({"shards": count}).encode())

    def open(self) -> Shelf:
        """Map all shards."""
        count = json.loads((self.folder / COMPLETE).read_text())["shards"]
        shards = [_open(self._file(number)) for number in range(count)]
        names = shards[0].tensors.keys()
        rows = {name: Rows([shard.tensors[name] for shard in shards]) for name in names}
        return Shelf(rows, tuple(shard.notes for shard in shards))

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:05d}.safetensors"


def fingerprint(modules: Iterable[nn.Module]) -> str:
    """SHA-256 over names, types and bytes of all weights."""
    total = hashlib.sha256()
    for module in modules:
        for name, weight in module.state_dict().items():
            total.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            total.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _open(file: Path) -> Encoded:
    with safe_open(os.fspath(file), framework="pt") as opened:
        names = opened.keys()
        return Encoded({name: opened.get_tensor(name) for name in names}, json.loads(opened.metadata()["notes"]))
