"""Experts that read with the same text encoders: their text is kept once (of FLUX, 4 MB a caption)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusemble.experts.expert import Expert

COMMON = ("attention_mask", "encoder_hidden_states_mask")
"""What is not packed: one for all experts, because they tokenize alike."""


@dataclass(frozen=True)
class Readers:
    """Which experts read alike.

    Attributes:
        order: for every expert the number of its text among the different ones, such as (0, 1, 0).
    """

    order: tuple[int, ...]

    @classmethod
    def of(cls, experts: Sequence[Expert]) -> Readers:
        """Experts whose text encoders are the same objects, which is how ``load_experts`` keeps equal ones."""
        encoders = [
            tuple(
                (name, id(part))
                for name, part in sorted(expert.components.items())
                if name.startswith("text_encoder") and isinstance(part, nn.Module)
            )
            for expert in experts
        ]
        different = list(dict.fromkeys(encoders))
        return cls(tuple(different.index(one) for one in encoders))

    def once(self, packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every different text once, of text packed along axis 1 for all experts."""
        first = [self.order.index(number) for number in range(max(self.order) + 1)]
        return {name: self._pick(name, text, len(self.order), first) for name, text in packed.items()}

    def each(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Undo ``once``."""
        return {name: self._pick(name, text, max(self.order) + 1, self.order) for name, text in kept.items()}

    def _pick(self, name: str, text: Tensor, parts: int, chosen: Sequence[int]) -> Tensor:
        if list(chosen) == list(range(parts)) or name in COMMON:
            return text
        cut = text.chunk(parts, dim=1)
        return torch.cat([cut[number] for number in chosen], dim=1)
