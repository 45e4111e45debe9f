"""Trains the image prompt (IP-Adapter): the style of a picture of something else; prompts without style."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from diffusemble.controls.image_prompt import ImagePrompt, ImagePromptCondition
from diffusemble.evaluation.scenes.scene import Scene
from recipes.zoo.controls.image_encoder import embeddings, references
from recipes.zoo.controls.training import DROPPED, Lesson, chance, frozen_base, teach
from recipes.zoo.settings import WORK, settings
from recipes.zoo.unet import Parts

NAME = "image_prompt"


def build(unet: UNet2DConditionModel, image_width: int) -> ImagePrompt:
    """A new control."""
    torch.manual_seed(0)
    return ImagePrompt.from_unet(unet, image_width, **settings(NAME)["model"])


def lesson(by_style: dict[str, Tensor]) -> Lesson:
    """Prompts name the things, half of them colours, half of them the relation; the picture is any of the style.

    Args:
        by_style: embeddings `[n d]` of reference pictures.
    """

    def captions(scene: Scene, generator: torch.Generator) -> str:
        return scene.caption(colours=chance(generator), relation=chance(generator), style=False)

    def conditions(scenes: Sequence[Scene], generator: torch.Generator) -> list[ImagePromptCondition]:
        found = []
        for scene in scenes:
            pool = by_style[scene.style]
            picked = pool[int(torch.randint(len(pool), (), generator=generator))]
            found.append(ImagePromptCondition(picked[None] * (not chance(generator, DROPPED))))
        return found

    return Lesson(NAME, captions, conditions)


def make(work: Path = WORK) -> None:
    """Train the control and write `work/controls/image_prompt.safetensors`."""
    target = work / "controls/image_prompt.safetensors"
    if target.exists():
        return
    parts, unet = Parts.load(work), frozen_base(work)
    by_style = {style: embeddings(work, rows) for style, rows in references(work).items()}
    control = build(unet, next(iter(by_style.values())).shape[1])
    average = teach(control, unet, parts, lesson(by_style), work)
    target.parent.mkdir(parents=True, exist_ok=True)
    average.save_pretrained(target)  # type: ignore[operator]
