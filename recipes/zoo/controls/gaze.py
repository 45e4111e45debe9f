"""A loss that teaches gated layers where to look: places inside a thing's box at the tokens of that thing.

The base hardly knows where it is on the page (padding alone tells), and the loss of the noise alone is slow to teach
its gated layers which of several things belongs where.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention import GatedSelfAttentionDense
from torch import Tensor, nn

from diffusemble.controls.interaction import Interaction, InteractionCondition

WEIGHT = 0.02  # of this loss; that of the noise is about 0.045


class Gaze:
    """Watches the gated layers of a control; called after a prediction, it is the loss of their looks.

    Args:
        control: what is trained.

    Attributes:
        conditions: what the control was told last, one for every picture.
    """

    def __init__(self, control: Interaction) -> None:
        self.conditions: Sequence[InteractionCondition | None] = []
        self.slots = control.sizes.slots
        self.seen: list[tuple[Any, Tensor]] = []
        for layer in control.modules():
            if isinstance(layer, GatedSelfAttentionDense):
                layer.norm1.register_forward_hook(self._remember(layer))

    def _remember(self, layer: GatedSelfAttentionDense) -> Any:
        def hook(_: nn.Module, __: Any, both: Tensor) -> None:
            if torch.is_grad_enabled():
                self.seen.append((layer.attn, both))

        return hook

    def __call__(self) -> Tensor:
        """The mean loss of all layers; forgets what they saw."""
        losses = [self._of(attention, both) for attention, both in self.seen]
        self.seen = []
        return WEIGHT * torch.stack(losses).mean()

    def _of(self, attention: Any, both: Tensor) -> Tensor:
        places = both.shape[1] - 3 * self.slots
        heads = [part.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
                 for part in (attention.to_q(both[:, :places]), attention.to_k(both))]  # fmt: skip
        looks = (heads[0] @ heads[1].transpose(-1, -2) * attention.scale).softmax(dim=-1).mean(dim=1)  # [b l l+t]
        own = torch.stack([tokens_of(one, round(places**0.5), self.slots) for one in self.conditions])
        own = own.to(looks)
        inside = own.amax(dim=-1)
        right = (looks[..., places:] * own).sum(dim=-1).clamp(min=1e-6)
        return -(right.log() * inside).sum() / inside.sum().clamp(min=1)


def tokens_of(condition: InteractionCondition | None, side: int, slots: int) -> Tensor:
    """Which tokens each place of a grid should look at, 0 or 1 `[side * side, 3 * slots]`: the smallest box's."""
    wanted = torch.zeros(side, side, 3 * slots)
    if condition is None:
        return wanted.flatten(0, 1)
    centres = (torch.arange(side) + 0.5) / side
    boxes = [(box, role + slot) for role, rows in ((0, condition.subject_boxes), (2 * slots, condition.object_boxes))
             for slot, box in enumerate(rows.tolist())]  # fmt: skip
    for box, _ in sorted(boxes, key=lambda entry: -(entry[0][2] - entry[0][0]) * (entry[0][3] - entry[0][1])):
        same = [token for other, token in boxes if other == box]
        across, down = (centres >= box[0]) & (centres < box[2]), (centres >= box[1]) & (centres < box[3])
        covered = down[:, None] & across[None, :]
        wanted[covered] = 0
        wanted[covered.nonzero()[:, 0][:, None], covered.nonzero()[:, 1][:, None], torch.tensor(same)] = 1
    return wanted.flatten(0, 1)
