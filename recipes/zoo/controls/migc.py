"""Trains MIGC: things, boxes and colours; prompts without relation and style."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from diffusemble.controls.migc import Migc, MigcCondition
from diffusemble.evaluation.scenes.conditions import instances_of
from diffusemble.evaluation.scenes.scene import Scene
from recipes.zoo.controls.training import Lesson, Words, chance, frozen_base, teach
from recipes.zoo.scenes.compose import options
from recipes.zoo.settings import WORK, settings
from recipes.zoo.unet import Parts

NAME = "migc"


def build(unet: UNet2DConditionModel) -> Migc:
    """A new control."""
    torch.manual_seed(0)
    return Migc.from_unet(unet, **settings(NAME)["model"])


def condition(scene: Scene, words: Words) -> MigcCondition:
    """What `migc_condition` makes of a scene, with phrases encoded once."""
    instances, side = instances_of(scene), options()["side"]
    text, pooled = words([phrase for phrase, _ in instances])
    return MigcCondition(text, pooled, torch.tensor([box for _, box in instances]), side, side, until=1.0)


def lesson(words: Words) -> Lesson:
    """Prompts name the things, half of them with their colours."""

    def captions(scene: Scene, generator: torch.Generator) -> str:
        return scene.caption(colours=chance(generator), relation=False, style=False)

    def conditions(scenes: Sequence[Scene], generator: torch.Generator) -> list[MigcCondition]:
        return [condition(scene, words) for scene in scenes]

    return Lesson(NAME, captions, conditions)


def make(work: Path = WORK) -> None:
    """Train the control and write `work/controls/migc.safetensors`."""
    target = work / "controls/migc.safetensors"
    if target.exists():
        return
    parts, unet = Parts.load(work), frozen_base(work)
    average = teach(build(unet), unet, parts, lesson(Words(parts)), work)
    target.parent.mkdir(parents=True, exist_ok=True)
    average.save_pretrained(target)  # type: ignore[operator]
