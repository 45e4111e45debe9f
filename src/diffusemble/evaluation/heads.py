"""Small trained heads that ship with the package: float16 weights, with how good they are in the file's header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

Head = TypeVar("Head", bound=nn.Module)


def save_head(head: nn.Module, file: Path, key: str, report: Mapping[str, Any]) -> None:
    """Write weights, and the report as JSON under ``key`` of the header."""
    file.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().half().contiguous() for name, value in head.state_dict().items()}
    save_file(weights, str(file), metadata={key: json.dumps(dict(report))})


def load_head(head: Head, file: Path, stage: str) -> Head:
    """The head with the weights of ``file``, frozen.

    Raises:
        FileNotFoundError: there is no such file; the message names the recipe's stage that makes it.
    """
    with safe_open(str(_present(file, stage)), framework="pt") as opened:
        head.load_state_dict({name: opened.get_tensor(name).float() for name in opened.keys()})  # noqa: SIM118
    return head.requires_grad_(False).eval()


def read_report(file: Path, key: str, stage: str) -> dict[str, Any]:
    """What ``save_head`` wrote beside the weights.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with safe_open(str(_present(file, stage)), framework="pt") as opened:
        report: dict[str, Any] = json.loads(opened.metadata()[key])
    return report


def _present(file: Path, stage: str) -> Path:
    if not file.is_file():
        raise FileNotFoundError(
            f"The heads of the {stage.replace('_', ' ')} are missing: {file}. Reinstall the package, or train them "
            f"with `python -m recipes.zoo {stage}`."
        )
    return file
