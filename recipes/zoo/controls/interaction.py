"""Trains the interaction model: things, boxes and a relation, by gated layers; prompts without colours and style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from diffusemble.controls.interaction import Interaction, InteractionCondition
from diffusemble.evaluation.scenes.conditions import relations_of
from diffusemble.evaluation.scenes.scene import Scene
from recipes.zoo.controls.gaze import Gaze
from recipes.zoo.controls.training import DROPPED, Lesson, Words, chance, frozen_base, teach
from recipes.zoo.settings import WORK, settings
from recipes.zoo.unet import Parts

NAME = "interaction"
OPEN = 0.8  # of the gates at the start: closed ones take long to open


def build(unet: UNet2DConditionModel) -> Interaction:
    """A new control at the blocks of the recipe, its gates a little open."""
    torch.manual_seed(0)
    model = dict(settings(NAME)["model"])
    starts = tuple(f"{block}." for block in model.pop("blocks"))
    sizes = Interaction.from_unet(unet, **model).sizes
    control = Interaction(replace(sizes, blocks={k: v for k, v in sizes.blocks.items() if k.startswith(starts)}))
    with torch.no_grad():
        for name, weight in control.named_parameters():
            if name.endswith(("alpha_attn", "alpha_dense")):
                weight.fill_(OPEN)
    return control


def condition(scene: Scene, words: Words) -> InteractionCondition:
    """What `interaction_condition` makes of a scene, with phrases encoded once."""
    relations = relations_of(scene)
    phrases = [
        words([getattr(relation, role) for relation in relations])[1] for role in ("subject", "action", "object")
    ]
    boxes = [torch.tensor([getattr(r, key) for r in relations]) for key in ("subject_box", "object_box")]
    return InteractionCondition(*boxes, *phrases)


def lesson(words: Words, gaze: Gaze | None = None) -> Lesson:
    """Prompts name the things, half of them the relation too; places learn from ``gaze`` where to look."""

    def captions(scene: Scene, generator: torch.Generator) -> str:
        return scene.caption(colours=False, style=False, relation=chance(generator))

    def conditions(scenes: Sequence[Scene], generator: torch.Generator) -> list[InteractionCondition | None]:
        found = [None if chance(generator, DROPPED) else condition(scene, words) for scene in scenes]
        if gaze is not None:
            gaze.conditions = found
        return found

    return Lesson(NAME, captions, conditions, gaze)


def make(work: Path = WORK) -> None:
    """Train the control and write `work/controls/interaction.safetensors`."""
    target = work / "controls/interaction.safetensors"
    if target.exists():
        return
    parts, unet = Parts.load(work), frozen_base(work)
    control = build(unet)
    average = teach(control, unet, parts, lesson(Words(parts), Gaze(control)), work)
    target.parent.mkdir(parents=True, exist_ok=True)
    average.save_pretrained(target)  # type: ignore[operator]
