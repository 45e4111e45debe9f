"""InteractDiffusion: who does what to whom, and where (arXiv 2312.05849)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusemble.controls.boxes import FEATURES, between, check_box, fourier
from diffusemble.controls.gated_condition import GatedCondition, GatedSizes
from diffusemble.controls.gated_control import GatedControl
from diffusemble.controls.phrases import encode_phrases
from diffusemble.controls.projection import Numbered, check_vectors, masks_of, or_nothing, packed, perceptron

_SUBJECT, _OBJECT, _ACTION = range(3)  # as the roles were numbered in training


@dataclass(frozen=True)
class Relation:
    """A subject does something to an object.

    Attributes:
        subject, action, object: phrases, such as "a man", "feeding", "a cat".
        subject_box, object_box: x1, y1, x2, y2 as shares of the picture.
    """

    subject: str
    subject_box: Sequence[float]
    action: str
    object: str
    object_box: Sequence[float]


def standing_alone(thing: str, box: Sequence[float]) -> Relation:
    """A thing in no relation, as InteractDiffusion can be told of it: it is its own subject and object."""
    return Relation(thing, box, "and", thing, box)


@dataclass(frozen=True, eq=False)
class InteractionCondition(GatedCondition):
    """Relations as the control knows them; ``interaction_condition`` makes it.

    Attributes:
        subject_boxes, object_boxes: ``[n 4]`` as x1, y1, x2, y2, shares of the picture.
        subjects, actions, objects: pooled embeddings of the phrases ``[n d]``.

    Raises:
        ValueError: the numbers of boxes and embeddings differ, or ``until`` is no share.
    """

    subject_boxes: Tensor
    object_boxes: Tensor
    subjects: Tensor
    actions: Tensor
    objects: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        boxes = {"subject_boxes": self.subject_boxes, "object_boxes": self.object_boxes}
        phrases = {"subjects": self.subjects, "actions": self.actions, "objects": self.objects}
        check_vectors({**boxes, **phrases}, len(self))

    def __len__(self) -> int:
        return len(self.subject_boxes)


def interaction_condition(
    pipe: Any, relations: Sequence[Relation], *, scale: float = 1.0, until: float = 1.0
) -> InteractionCondition:
    """Encode relations with a pipeline's own text encoder.

    Args:
        pipe: a pipeline with ``tokenizer`` and ``text_encoder`` (CLIP).
        relations: in the order of the slots.
        scale: in front of the gates: 1 as trained, 0 off.
        until: share of the schedule during which the control is on.

    Raises:
        ValueError: there are no relations, a box leaves the picture or has its corners in another order, or a phrase is
            empty or too long.
    """
    if not relations:
        raise ValueError("There are no relations. Give at least one, or draw without this control.")
    subjects, objects = [], []
    for number, relation in enumerate(relations):
        subjects.append(check_box(relation.subject_box, f"the subject {relation.subject!r} of relation {number}"))
        objects.append(check_box(relation.object_box, f"the object {relation.object!r} of relation {number}"))
    count = len(relations)
    phrases = [relation.subject for relation in relations]
    phrases += [relation.action for relation in relations]
    phrases += [relation.object for relation in relations]
    embeddings = encode_phrases(pipe, phrases)
    boxes = torch.tensor([subjects, objects], device=embeddings.device)
    return InteractionCondition(*boxes, *embeddings.split(count), scale=scale, until=until)


class InteractionProjection(nn.Module):
    """Tokens of relations: three for each, of its subject, its action and its object.

    A token is a projection of a phrase and the Fourier features of a box, plus a vector of its slot and one of its
    role. An action is where its subject and its object meet (``boxes.between``).
    """

    def __init__(self, text: int, token: int, hidden: int, slots: int) -> None:
        super().__init__()
        self.linears = perceptron(text + FEATURES, hidden, token)
        self.linear_action = perceptron(text + FEATURES, hidden, token)
        self.interaction_embedding = Numbered(slots, token)
        self.position_embedding = Numbered(3, token)
        self.null_positive_feature = nn.Parameter(torch.zeros(text))
        self.null_action_feature = nn.Parameter(torch.zeros(text))
        self.null_position_feature = nn.Parameter(torch.zeros(FEATURES))

    def forward(self, subject_boxes: Tensor, object_boxes: Tensor, masks: Tensor, *phrases: Tensor) -> Tensor:
        """Project relations (InteractDiffusion, sections 3.2 and 3.3).

        Args:
            subject_boxes, object_boxes: ``[b s 4]``.
            masks: 1 for relations, 0 for empty slots ``[b s]``.
            phrases: embeddings of subjects, actions and objects ``[b s d]``.

        Returns:
            ``[b 3s t]``: all subjects, all actions, all objects.
        """
        subjects, actions, objects = phrases
        things, doing = self.null_positive_feature, self.null_action_feature
        roles = self.position_embedding.emb.weight

        def token(net: nn.Module, text: Tensor, nothing: Tensor, boxes: Tensor, role: int) -> Tensor:
            place = or_nothing(fourier(boxes).to(text.dtype), masks, self.null_position_feature)
            projected: Tensor = net(torch.cat([or_nothing(text, masks, nothing), place], dim=-1))
            return projected + self.interaction_embedding.emb.weight + roles[role]

        action_boxes = between(subject_boxes, object_boxes)
        return torch.cat(
            [
                token(self.linears, subjects, things, subject_boxes, _SUBJECT),
                token(self.linear_action, actions, doing, action_boxes, _ACTION),
                token(self.linears, objects, things, object_boxes, _OBJECT),
            ],
            dim=1,
        )


class Interaction(GatedControl):
    """InteractDiffusion on a plain Stable Diffusion 1.x U-Net; its condition is an ``InteractionCondition``."""

    key = "interaction"
    Condition = InteractionCondition

    @staticmethod
    def _projection(sizes: GatedSizes) -> nn.Module:
        return InteractionProjection(sizes.text, sizes.token, sizes.hidden, sizes.slots)

    @classmethod
    def _projection_sizes(cls, weights: Mapping[str, Tensor]) -> dict[str, int]:
        hidden, features = weights["position_net.linears.0.weight"].shape
        slots = weights.get("position_net.interaction_embedding.emb.weight", torch.empty(0))
        return {"text": features - FEATURES, "hidden": hidden, "slots": len(slots)}

    def project(self, conditions: Sequence[InteractionCondition | None]) -> Tensor:
        """As ``GatedControl.project``: ``[k 3s t]``."""
        like, slots = self._weight, self.sizes.slots
        masks = masks_of([0 if one is None else len(one) for one in conditions], slots, like)
        boxes = [
            packed([None if one is None else getattr(one, name) for one in conditions], slots, 4, like.float())
            for name in ("subject_boxes", "object_boxes")
        ]
        phrases = [
            packed([None if one is None else getattr(one, name) for one in conditions], slots, self.sizes.text, like)
            for name in ("subjects", "actions", "objects")
        ]
        tokens: Tensor = self.position_net(*boxes, masks, *phrases)
        return tokens
