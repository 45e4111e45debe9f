"""A merged model in memory, as an expert: only slots whose shares change are computed again."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffusemble.experts.expert import Expert, check_block_level
from diffusemble.experts.pipeline import build_pipeline
from diffusemble.merging.blend import differing_slots, merge_blocks
from diffusemble.merging.blockwise import block_ratios, slots
from diffusemble.merging.family import family_of

DENOISER = "unet"  # FLUX's transformer too: slots go by the names within it
PARTS = ("text_encoder", "text_encoder_2", "vae")


class MergedExpert:
    """Experts merged by block weights.

    Args:
        experts: of one architecture; they stay as they are.
        weights: one weight per slot for every expert; equal by default.

    Attributes:
        family: of the slots.
        expert: the merged model. ``set`` changes its tensors in place.

    Raises:
        ValueError: the experts differ in architecture, or their family has no slots.
    """

    def __init__(self, experts: Sequence[Expert], weights: Sequence[Mapping[str, float]] | None = None) -> None:
        check_block_level(experts)
        first = experts[0]
        self.family = family_of(first.denoiser.state_dict())
        self._parts = [name for name in PARTS if _differs(name, experts)]
        self._models = [_tensors(expert, self._parts) for expert in experts]
        own = {name: _copied(first.components[name]) for name in self._parts}
        self.expert = replace(
            first,
            name="merged",
            denoiser=_copied(first.denoiser),
            components={**first.components, **own},
            source=None,
            files={},
        )
        self._targets = _tensors(self.expert, self._parts)
        self._ratios: dict[str, tuple[float, ...]] = {}
        self.set(weights or [dict.fromkeys(slots(self.family), 1.0)] * len(experts))

    def differing(self) -> tuple[str, ...]:
        """Slots in which the experts differ, in order; merging the others changes nothing."""
        found = differing_slots(self._models, self.family)
        return tuple(slot for slot in slots(self.family) if slot in found)

    @torch.no_grad()
    def set(self, weights: Sequence[Mapping[str, float]]) -> None:
        """Merge by other block weights, one set per expert."""
        ratios = {slot: block_ratios(weights, slot) for slot in slots(self.family)}
        changed = {slot for slot, own in ratios.items() if own != self._ratios.get(slot)}
        for key, tensor in merge_blocks(self._models, weights, self.family, changed).items():
            self._targets[key].copy_(tensor)
        self._ratios = ratios

    def pipeline(self) -> Any:
        """A diffusers pipeline that draws with the merged model, whatever ``set`` makes of it."""
        own = {name: part for name, part in self.expert.components.items() if name.startswith("text_encoder")}
        return build_pipeline(self.expert.denoiser, [self.expert], None, own)


def _differs(name: str, experts: Sequence[Expert]) -> bool:
    parts = [expert.components.get(name) for expert in experts]
    return None not in parts and any(part is not parts[0] for part in parts)


def _copied(module: nn.Module) -> Any:
    return copy.deepcopy(module).requires_grad_(False).eval()


def _tensors(expert: Expert, parts: Sequence[str]) -> dict[str, Tensor]:
    modules = {DENOISER: expert.denoiser, **{name: expert.components[name] for name in parts}}
    return {f"{name}/{key}": tensor for name, module in modules.items() for key, tensor in module.state_dict().items()}
