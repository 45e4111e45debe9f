"""What a pipeline computes with, as one short text: equal pipelines have equal ones, wherever they came from."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_known: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def digest_of(part: Any) -> str:
    """SHA-256, 16 hexadecimal digits.

    Of a module: its class, weights, and options; of a pipeline: its modules, and the configuration of its scheduler.
    What a module computes with beside these must be in the name it is kept under.
    """
    if isinstance(part, nn.Module):
        return _of_module(part)
    found = {name: _of_component(component) for name, component in sorted(part.components.items())}
    return _short(json.dumps([type(part).__name__, found]).encode())


def _of_component(component: Any) -> str:
    if isinstance(component, nn.Module):
        return _of_module(component)
    config = getattr(component, "config", None)
    return type(component).__name__ + (_plain(config) if isinstance(config, dict) else "")


def _of_module(module: nn.Module) -> str:
    if module not in _known:
        total = hashlib.sha256(f"{type(module).__name__} {getattr(module, 'options', '')!r}".encode())
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            total.update(name.encode())
            total.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        for name, child in module.named_children():
            total.update(f"{name} {_of_module(child)}".encode())
        _known[module] = total.hexdigest()[:16]
    return _known[module]


def _plain(config: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in config.items() if not key.startswith("_")}, default=str)


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
