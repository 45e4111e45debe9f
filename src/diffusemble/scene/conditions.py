"""What each kind of control is told of a scene."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from diffusemble.controls.gligen import Gligen, gligen_condition
from diffusemble.controls.image_prompt import ImagePrompt, image_prompt_condition
from diffusemble.controls.interaction import Interaction, Relation, interaction_condition, standing_alone
from diffusemble.controls.migc import Migc, migc_condition
from diffusemble.pictures.files import read_picture
from diffusemble.scene.config import SceneConfig
from diffusemble.scene.member_config import MemberConfig

CONTROLS: Mapping[str, Any] = {
    "interaction": Interaction,
    "migc": Migc,
    "image-prompt": ImagePrompt,
    "gligen": Gligen,
}
"""Classes by kind of member."""


@dataclass(frozen=True)
class Stage:
    """What conditions are made with.

    Attributes:
        pipe: pipeline whose text encoder reads phrases.
        height, width: of the pictures in pixels.
        until: share of the schedule in which a control works, by kind, where the member does not say.
        encoder, processor: of reference pictures; None without an image prompt.
    """

    pipe: Any
    height: int
    width: int
    until: Mapping[str, float]
    encoder: Any = None
    processor: Any = None


def condition_of(scene: SceneConfig, member: MemberConfig, stage: Stage) -> Any:
    """The condition of a scene for a member's control."""
    return _MAKERS[member.kind](scene, member, stage)


def relations_of(scene: SceneConfig) -> list[Relation]:
    """The scene's relations, then every instance that stands in none, as its own subject and object.

    An interaction model knows no attributes, so phrases come without.
    """
    things = {instance.name: instance for instance in scene.instances}
    told = [(things[each.subject], each.action, things[each.object]) for each in scene.relations]
    related = {thing.name for subject, _, other in told for thing in (subject, other)}
    relations = [Relation(one.plain, one.box, action, other.plain, other.box) for one, action, other in told]
    return relations + [standing_alone(one.plain, one.box) for one in scene.instances if one.name not in related]


def _interaction(scene: SceneConfig, member: MemberConfig, stage: Stage) -> Any:
    until = stage.until["interaction"] if member.until is None else member.until
    return interaction_condition(stage.pipe, relations_of(scene), scale=member.scale, until=until)


def _gligen(scene: SceneConfig, member: MemberConfig, stage: Stage) -> Any:
    until = stage.until["gligen"] if member.until is None else member.until
    things = [(thing.described, thing.box) for thing in scene.instances]
    return gligen_condition(stage.pipe, things, scale=member.scale, until=until)


def _migc(scene: SceneConfig, member: MemberConfig, stage: Stage) -> Any:
    until = stage.until["migc"] if member.until is None else member.until
    things = [(thing.described, thing.box) for thing in scene.instances]
    made = migc_condition(stage.pipe, things, stage.height, stage.width, until)
    return replace(made, enhancement_scale=member.scale)


def _image_prompt(scene: SceneConfig, member: MemberConfig, stage: Stage) -> Any:
    picture = read_picture(scene.reference or "", "reference")
    return image_prompt_condition(picture, stage.encoder, stage.processor, member.scale, stage.pipe.device)


_MAKERS: Mapping[str, Callable[[SceneConfig, MemberConfig, Stage], Any]] = {
    "interaction": _interaction,
    "migc": _migc,
    "image-prompt": _image_prompt,
    "gligen": _gligen,
}
