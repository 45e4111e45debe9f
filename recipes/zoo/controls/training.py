"""What the trainings of all controls share: a frozen base, a control at work in it, and prompts without its part.

The base's prompt never has what the control knows, and often has the rest, so that the control alone can supply it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from diffusemble.controls.base import Call, Control
from diffusemble.evaluation.scenes.scene import Scene
from recipes.zoo.loop import train
from recipes.zoo.scenes.base import Predict, noise_loss, some_held, watcher
from recipes.zoo.scenes.data import Scenes
from recipes.zoo.settings import DEVICE, plan_of
from recipes.zoo.text import tokens_of
from recipes.zoo.unet import Parts

DROPPED = 0.1  # of the samples: no prompt, and no condition where a control has an unconditional half of its own
NAMED = 0.5  # how often a prompt has a part that it may have

Conditions = Callable[[Sequence[Scene], torch.Generator], list[Any]]
Captions = Callable[[Scene, torch.Generator], str]


@dataclass(frozen=True)
class Words:
    """Phrases as a pipeline's text encoder reads them, each encoded once."""

    parts: Parts
    known: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings `[n s d]` and pooled ones `[n d]`."""
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self.known]
        if new:
            output = self.parts.encoder(tokens_of(self.parts.tokenizer, new, "max_length"))
            self.known.update(zip(new, zip(output.last_hidden_state, output.pooler_output, strict=True), strict=True))
        texts, pooled = zip(*(self.known[phrase] for phrase in phrases), strict=True)
        return torch.stack(texts), torch.stack(pooled)


@dataclass(frozen=True)
class Lesson:
    """One control's training.

    Attributes:
        name: of the part of the recipe.
        captions: the prompt of a scene.
        conditions: what the control is told of some scenes.
        further: a loss that is added to that of the noise, after each prediction.
    """

    name: str
    captions: Captions
    conditions: Conditions
    further: Callable[[], Tensor] | None = None


def chance(generator: torch.Generator, share: float = NAMED) -> bool:
    """True for a share of the calls."""
    return bool(torch.rand((), generator=generator) < share)


def predictor(unet: UNet2DConditionModel, parts: Parts, lesson: Lesson) -> Callable[[nn.Module], Predict]:
    """How a control predicts noise in a frozen U-Net."""

    def of(control: nn.Module) -> Predict:
        def predict(noisy: Tensor, times: Tensor, scenes: list[Scene], generator: torch.Generator) -> Tensor:
            captions = ["" if chance(generator, DROPPED) else lesson.captions(s, generator) for s in scenes]
            text = parts.embed(captions).to(DEVICE)
            call = Call(noisy, times, text, False)
            with control.attached(unet, lesson.conditions(scenes, generator), call) as more:  # type: ignore[operator]
                found: Tensor = unet(noisy, times, text, **more).sample
            return found

        return predict

    return of


def teach(control: Control, unet: UNet2DConditionModel, parts: Parts, lesson: Lesson, work: Path) -> Control:
    """Train a control beside a frozen U-Net; its moving average."""
    plan = plan_of(lesson.name)
    of = predictor(unet, parts, lesson)
    of_noise = noise_loss(Scenes.load(work, "train"), of(control), plan)

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        loss = of_noise(step, generator)
        return loss if lesson.further is None else loss + lesson.further()

    average: Control = train(
        control.to(DEVICE),
        loss_at,
        plan,
        work / "training" / lesson.name,
        watcher(lesson.name, some_held(work), of, work),
    )
    return average.cpu().eval()


def frozen_base(work: Path) -> UNet2DConditionModel:
    """The trained base of scenes."""
    unet = UNet2DConditionModel.from_pretrained(work / "scenes/unet").requires_grad_(False).eval()
    return unet.to(DEVICE)
