"""GLIGEN: which thing stands in which box (arXiv 2301.07093)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusemble.controls.boxes import FEATURES, check_box, fourier
from diffusemble.controls.gated_condition import SLOTS, GatedCondition, GatedSizes
from diffusemble.controls.gated_control import GatedControl
from diffusemble.controls.phrases import encode_phrases
from diffusemble.controls.projection import check_vectors, masks_of, or_nothing, packed, perceptron


@dataclass(frozen=True, eq=False)
class GligenCondition(GatedCondition):
    """Things in boxes as the control knows them; ``gligen_condition`` makes it.

    Attributes:
        boxes: ``[n 4]`` as x1, y1, x2, y2, shares of the picture.
        phrases: their pooled embeddings ``[n d]``.

    Raises:
        ValueError: the numbers of boxes and embeddings differ, or ``until`` is no share.
    """

    boxes: Tensor
    phrases: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        check_vectors({"boxes": self.boxes, "phrases": self.phrases}, len(self))

    def __len__(self) -> int:
        return len(self.boxes)


def gligen_condition(
    pipe: Any, things: Sequence[tuple[str, Sequence[float]]], *, scale: float = 1.0, until: float = 1.0
) -> GligenCondition:
    """Encode things in boxes with a pipeline's own text encoder.

    Args:
        pipe: a pipeline with ``tokenizer`` and ``text_encoder`` (CLIP).
        things: a phrase and a box (x1, y1, x2, y2 as shares of the picture) each.
        scale: in front of the gates: 1 as trained, 0 off.
        until: share of the schedule during which the control is on.

    Raises:
        ValueError: there are no things, a box leaves the picture or has its corners in another order, or a phrase is
            empty or too long.
    """
    if not things:
        raise ValueError("There are no things in boxes. Give at least one, or draw without this control.")
    boxes = [check_box(box, repr(phrase)) for phrase, box in things]
    embeddings = encode_phrases(pipe, [phrase for phrase, _ in things])
    return GligenCondition(torch.tensor(boxes, device=embeddings.device), embeddings, scale=scale, until=until)


class TextBoxProjection(nn.Module):
    """Tokens of things in boxes: one for each, a projection of a phrase and the Fourier features of a box."""

    def __init__(self, text: int, token: int, hidden: int) -> None:
        super().__init__()
        self.linears = perceptron(text + FEATURES, hidden, token)
        self.null_positive_feature = nn.Parameter(torch.zeros(text))
        self.null_position_feature = nn.Parameter(torch.zeros(FEATURES))

    def forward(self, boxes: Tensor, masks: Tensor, phrases: Tensor) -> Tensor:
        """Project things in boxes (GLIGEN, equation 5).

        Args:
            boxes: ``[b s 4]``.
            masks: 1 for things, 0 for empty slots ``[b s]``.
            phrases: embeddings ``[b s d]``.

        Returns:
            ``[b s t]``.
        """
        place = or_nothing(fourier(boxes).to(phrases.dtype), masks, self.null_position_feature)
        what = or_nothing(phrases, masks, self.null_positive_feature)
        tokens: Tensor = self.linears(torch.cat([what, place], dim=-1))
        return tokens


class Gligen(GatedControl):
    """GLIGEN's boxes with text on a plain Stable Diffusion 1.x U-Net; its condition is a ``GligenCondition``."""

    key = "gligen"
    Condition = GligenCondition

    @staticmethod
    def _projection(sizes: GatedSizes) -> nn.Module:
        return TextBoxProjection(sizes.text, sizes.token, sizes.hidden)

    @classmethod
    def _projection_sizes(cls, weights: Mapping[str, Tensor]) -> dict[str, int]:
        hidden, features = weights["position_net.linears.0.weight"].shape
        return {"text": features - FEATURES, "hidden": hidden, "slots": SLOTS}

    def project(self, conditions: Sequence[GligenCondition | None]) -> Tensor:
        """As ``GatedControl.project``: ``[k s t]``."""
        like, slots = self._weight, self.sizes.slots
        masks = masks_of([0 if one is None else len(one) for one in conditions], slots, like)
        boxes = packed([None if one is None else one.boxes for one in conditions], slots, 4, like.float())
        phrases = packed([None if one is None else one.phrases for one in conditions], slots, self.sizes.text, like)
        tokens: Tensor = self.position_net(boxes, masks, phrases)
        return tokens
