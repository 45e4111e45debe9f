"""What each kind of control is told of a scene, and the prompt that goes with it."""

from __future__ import annotations

from typing import Any

from diffusemble.controls.instances import MigcCondition, migc_condition
from diffusemble.controls.interaction import InteractionCondition, Relation, interaction_condition, standing_alone
from diffusemble.evaluation.scenes.scene import Box, Scene


def relations_of(scene: Scene) -> list[Relation]:
    """What an interaction model is told: the relation of the first two things, and where the others are; no colours."""
    subject, other, *rest = scene.things
    related = Relation(subject.name, subject.box, scene.relation, other.name, other.box)
    return [related, *(standing_alone(thing.name, thing.box) for thing in rest)]


def instances_of(scene: Scene) -> list[tuple[str, Box]]:
    """What MIGC is told: every thing with its colour, and where it is; no relation."""
    return [(thing.phrase, thing.box) for thing in scene.things]


def interaction_of(pipe: Any, scene: Scene) -> InteractionCondition:
    """Condition of a scene for an interaction model on this pipeline."""
    return interaction_condition(pipe, relations_of(scene))


def migc_of(pipe: Any, scene: Scene, side: int, until: float = 1.0) -> MigcCondition:
    """Condition of a scene for MIGC on this pipeline, for pictures of ``side`` pixels."""
    return migc_condition(pipe, instances_of(scene), side, side, until)


def prompt_for(control: str, scene: Scene) -> str:
    """The prompt of a member that knows its control's part of a scene and no more.

    Args:
        control: ``interaction`` (things and relation), ``migc`` (things and colours) or ``image_prompt`` (things).
        scene: what is asked for.

    Raises:
        ValueError: another control.
    """
    parts = {"interaction": (False, True), "migc": (True, False), "image_prompt": (False, False)}
    if control not in parts:
        raise ValueError(f"Scenes know the controls {', '.join(parts)}; got {control!r}.")
    colours, relation = parts[control]
    return scene.caption(colours=colours, relation=relation, style=False)
