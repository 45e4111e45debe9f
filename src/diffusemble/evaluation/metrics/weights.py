"""Where published weights lie: a folder the user names, else the hub's cache. Nothing is downloaded."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CONFIG = "config.json"


@dataclass(frozen=True)
class Published:
    """Weights somebody published.

    Attributes:
        name: of the folder or file inside the folder of weights.
        repository: on the hub; empty if it is not there.
        file: inside the repository; empty if the whole repository (a folder with ``config.json``) is meant.
        url: where people find it.
    """

    name: str
    repository: str = ""
    file: str = ""
    url: str = ""

    def find(self, weights: Path | None) -> Path:
        """Path of the folder or file.

        Args:
            weights: folder to search first; only the hub's cache is searched if it is None.

        Raises:
            FileNotFoundError: it is in neither; the message says what to download and where to put it.
        """
        mark = "" if self.file or not self.repository else CONFIG
        for place in self._places(weights):
            if (place / mark).exists() if mark else place.is_file():
                return place
        raise FileNotFoundError(self._advice(weights))

    def _places(self, weights: Path | None) -> list[Path]:
        places = [] if weights is None else [Path(weights) / self.name]
        if self.repository:
            cached = _cached(self.repository, self.file or CONFIG)
            if cached is not None:
                places.append(cached if self.file else cached.parent)
        return places

    def _advice(self, weights: Path | None) -> str:
        where = "<a folder that you give as weights>" if weights is None else str(weights)
        searched = "the hub's cache" if weights is None else f"{weights} and the hub's cache"
        if not self.repository:
            searched = "no folder was given" if weights is None else str(weights)
        if self.url:
            how = f"Download {self.url} to {where}/{self.name}"
        else:
            what = f"{self.repository} {self.file}".strip()
            target = f"{where}/{self.name}" if not self.file else where
            how = f"Run `hf download {what}` where there is a network, or add `--local-dir {target}`"
        return f"The metric needs the weights {self.name}, which are not there (searched: {searched}). {how}."


def _cached(repository: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file)
    return Path(found) if isinstance(found, str) else None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Named tensors of a ``.safetensors`` file or of a torch checkpoint, which is never unpickled as code.

    A checkpoint may hold its tensors under ``state_dict``.

    Raises:
        ValueError: the file holds anything else.
    """
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"Only tensors are read from checkpoints, and {file} is not one or holds more ({str(error)[:120]}). "
            f"Download it again, or convert it to safetensors on a machine where you trust it."
        ) from error
    found = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{file} should hold named tensors; it holds {type(found).__name__}. Give a state dictionary.")
    return dict(found)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load a state dictionary that must fit exactly.

    Counters of batch normalisation and position numbers may be missing or left over: they are not weights.

    Raises:
        ValueError: a key is missing, left over, or of another shape; the message names the first ones.
    """
    own = {key: value for key, value in module.state_dict().items() if not _counts(key)}
    given = {key: value for key, value in tensors.items() if not _counts(key)}
    wrong = [f"{key} is missing" for key in own if key not in given]
    wrong += [f"{key} is left over" for key in given if key not in own]
    wrong += [
        f"{key} has the shape {tuple(given[key].shape)} instead of {tuple(value.shape)}"
        for key, value in own.items()
        if key in given and given[key].shape != value.shape
    ]
    if wrong:
        raise ValueError(
            f"{source} does not fit {type(module).__name__}: {'; '.join(wrong[:4])} ({len(wrong)} in all). "
            f"Check that it is the published file named in docs/metrics.md."
        )
    module.load_state_dict(given, strict=False)


def _counts(key: str) -> bool:
    return key.endswith(("num_batches_tracked", "position_ids"))
