"""A part of a pipeline, put together from the tensors of a single file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from diffusemble.experts.formats.checkpoint import Checkpoint, cast
from diffusemble.experts.layouts.origin import Layout, Origin, Origins


@dataclass(frozen=True)
class Plan:
    """Where the tensors of one part lie in a file.

    Attributes:
        prefix: what stands before every name.
        origins: of all tensors.
    """

    prefix: str
    origins: Origins

    def missing(self, checkpoint: Checkpoint) -> list[str]:
        """Names in the file that should be there."""
        return [
            self.prefix + one.key for one in self.origins.values() if self.prefix + one.key not in checkpoint.shapes
        ]

    def left_over(self, checkpoint: Checkpoint, but: tuple[str, ...] = ()) -> list[str]:
        """Names under the prefix that no tensor comes from; those that begin with one of ``but`` do not count."""
        used = {self.prefix + one.key for one in self.origins.values()}
        own = (key for key in checkpoint.shapes if key.startswith(self.prefix) and key not in used)
        return [key for key in own if not (but and key.startswith(but))]


def empty(cls: Any, config: Any) -> nn.Module:
    """A model of a class without weights: diffusers' from a configuration's entries, transformers' from its object."""
    with init_empty_weights():
        model: nn.Module = (
            cls.from_config(config) if hasattr(cls, "from_config") and isinstance(config, dict) else cls(config)
        )
    return model


def choose(model: nn.Module, layouts: Iterable[tuple[str, Layout]], checkpoint: Checkpoint) -> Plan:
    """Of several layouts with their prefixes, the one that most of the model's tensors are found in."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    pairs = list(layouts)
    origins = {layout: layout(model, shapes) for _, layout in pairs}
    return min(
        (Plan(prefix, origins[layout]) for prefix, layout in pairs), key=lambda plan: len(plan.missing(checkpoint))
    )


def fill(
    model: Any,
    plan: Plan,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    given: Mapping[str, Tensor] | None = None,
) -> None:
    """Give a model without weights those of a file.

    Args:
        model: from ``empty``; in evaluation mode afterwards.
        plan: where its tensors lie.
        checkpoint: the file.
        dtype: number type of the weights.
        given: tensors that do not come from the file.

    Raises:
        KeyError: the file lacks a tensor; its name in the file.
        ValueError: a tensor has another shape.
    """
    wide = _kept_wide(model, dtype)
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        shape = tuple(tensor.shape)
        if given and name in given:
            state[name] = cast(given[name], dtype)
            continue
        kind = torch.float32 if any(one in name.split(".") for one in wide) else dtype
        state[name] = _read(checkpoint, plan.prefix, plan.origins[name], shape, kind)
    model.load_state_dict(state, assign=True)
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # T5 has its embedding under two names
    model.eval()


def _read(checkpoint: Checkpoint, prefix: str, origin: Origin, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    key = prefix + origin.key
    found = checkpoint.shapes.get(key)
    if found is None:
        raise KeyError(key)
    if not origin.fits(found, shape):
        raise ValueError(f"{key!r} has the shape {tuple(found)}, which does not give {shape}")
    part = origin.take(checkpoint.read(key), shape)
    own = cast(part, dtype).contiguous()
    # A piece of a fused tensor must not keep the whole in memory; a whole one may stay mapped to the file.
    return own.clone() if origin.rows and own.dtype == part.dtype else own


def _kept_wide(model: nn.Module, dtype: torch.dtype) -> tuple[str, ...]:
    """Modules whose authors say that half precision overflows in them."""
    named = getattr(model, "_keep_in_fp32_modules", None) or ()
    return tuple(named) if dtype == torch.float16 else ()
