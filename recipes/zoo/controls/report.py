"""Measures what ships: the measures themselves on known pictures, and each control alone on held-out scenes.

`python -m recipes.zoo controls.report` writes `work/controls/report.json` and sheets to `work/sheets`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from diffusemble.controls.image_prompt import ImagePrompt, image_prompt_condition
from diffusemble.controls.interaction import Interaction
from diffusemble.controls.migc import Migc
from diffusemble.controls.pipelines import pipeline_with
from diffusemble.evaluation.features import AllNets
from diffusemble.evaluation.scenes.conditions import interaction_of, migc_of, prompt_for
from diffusemble.evaluation.scenes.held import held_scenes, references
from diffusemble.evaluation.scenes.judge import SceneJudge, judge
from diffusemble.evaluation.scenes.probe import SceneProbe
from diffusemble.evaluation.scenes.scene import Scene
from diffusemble.zoo import control_file, folder, image_encoder_folder
from recipes.zoo.pictures import write_sheet
from recipes.zoo.scenes.base import draw
from recipes.zoo.scenes.compose import Icons, options
from recipes.zoo.scenes.data import Scenes, pictures
from recipes.zoo.scenes.probe import decoded
from recipes.zoo.settings import WORK
from recipes.zoo.vae import encode

COUNT, BATCH, GUIDANCE = 96, 16, 4.0
Row = dict[str, float]


@dataclass(frozen=True)
class Member:
    """A pipeline with what it is told of scenes."""

    pipe: StableDiffusionPipeline
    prompts: Callable[[Scene], str]
    conditions: Callable[[Sequence[Scene]], dict[str, Any]]

    def draw(self, scenes: Sequence[Scene], first: int = 0) -> Tensor:
        """Pictures `[n 3 h w]` in [0, 1], number i from seed `first` + i."""
        told = self.conditions(scenes)
        extra = {"cross_attention_kwargs": told} if told else {}
        return (draw(self.pipe, [self.prompts(s) for s in scenes], GUIDANCE, first=first, **extra) + 1) / 2


def members() -> dict[str, Member]:
    """The base with everything said, and each control with its own part alone."""
    base = StableDiffusionPipeline.from_pretrained(folder("scenes"))
    unet, side = base.unet, options()["side"]
    interaction = pipeline_with(base, [Interaction.from_pretrained(control_file("interaction"))])
    migc = pipeline_with(base, [Migc.from_pretrained(control_file("migc"))])
    picture = pipeline_with(base, [ImagePrompt.from_pretrained(control_file("image_prompt"))])
    look = reference_reader()
    assert unet is interaction.unet.unet
    return {
        "base": Member(base, Scene.caption, lambda scenes: {}),
        "interaction": Member(
            interaction,
            lambda s: prompt_for("interaction", s),
            lambda scenes: {"interaction": [interaction_of(base, s) for s in scenes]},
        ),
        "migc": Member(
            migc, lambda s: prompt_for("migc", s), lambda scenes: {"migc": [migc_of(base, s, side) for s in scenes]}
        ),
        "image_prompt": Member(
            picture,
            lambda s: prompt_for("image_prompt", s),
            lambda scenes: {"image_prompt": [look(s) for s in scenes]},
        ),
    }


def reference_reader() -> Callable[[Scene], Any]:
    """The image prompt of a scene: one of its style's references, by the scene's own number."""
    encoder = CLIPVisionModelWithProjection.from_pretrained(image_encoder_folder()).eval()
    processor = CLIPImageProcessorPil.from_pretrained(image_encoder_folder())

    def look(scene: Scene) -> Any:
        pool = references(scene.style)
        return image_prompt_condition(pool[len(scene.caption()) % len(pool)], encoder, processor)

    return look


def judged(images: Tensor, scenes: Sequence[Scene], look: SceneJudge) -> list[Row]:
    """All measures of every picture."""
    return [look(image, scene).measures() for image, scene in zip(images, scenes, strict=True)]


def table(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Mean of every measure, and half of its 95 % interval."""
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    half = 1.96 / len(rows) ** 0.5
    return {key: (round(mean(values), 4), round(half * stdev(values), 4)) for key, values in columns.items()}


def wrong(scenes: Sequence[Scene]) -> Iterable[tuple[str, list[Scene]]]:
    """Scenes that are asked of other pictures: boxes, colours or styles exchanged, or another scene altogether."""

    def turned(scene: Scene, key: str) -> Scene:
        values = [getattr(thing, key) for thing in scene.things]
        values = [*values[1:], values[0]]
        things = tuple(replace(t, **{key: value}) for t, value in zip(scene.things, values, strict=True))
        return replace(scene, things=things)

    styles = [scene.style for scene in scenes]
    yield "boxes exchanged", [turned(scene, "box") for scene in scenes]
    yield "colours exchanged", [turned(scene, "colour") for scene in scenes]
    yield (
        "another scene's style",
        [replace(s, style=t) for s, t in zip(scenes, [*styles[7:], *styles[:7]], strict=True)],
    )
    yield "another scene", [*scenes[1:], scenes[0]]


def validate(look: SceneJudge, work: Path) -> dict[str, Any]:
    """The measures on real scenes, on the same through the autoencoder, and on these with wrong requests."""
    scenes, icons = held_scenes(COUNT), Icons.load(work)
    vae = AutoencoderKL.from_pretrained(work / "vae").requires_grad_(False)
    real = pictures(scenes, icons)
    through = decoded(vae, encode(vae, real)[0] * vae.config.scaling_factor)
    found = {"real": table(judged(real / 255, scenes, look))}
    seen = [look.recognise(image) for image in through]
    for name, asked in (("through the autoencoder", scenes), *wrong(scenes)):
        pairs = zip(asked, seen, strict=True)
        found[name] = table([judge(s, one, look.probe.names, look.probe.styles).measures() for s, one in pairs])
    return found


def measure(look: SceneJudge, count: int = COUNT) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Each member alone on held-out scenes: its table, and its pictures."""
    scenes = held_scenes(count)
    tables, drawn = {}, {}
    for name, member in members().items():
        starts = range(0, count, BATCH)
        drawn[name] = torch.cat([member.draw(scenes[start : start + BATCH], start) for start in starts])
        tables[name] = table(judged(drawn[name], scenes, look))
    return tables, drawn


def make(work: Path = WORK) -> None:
    """Write the report and the sheets."""
    look = SceneJudge(SceneProbe.load(), AllNets())
    report = {"validation": validate(look, work)}
    report["members"], drawn = measure(look)
    (work / "controls/report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    real = pictures(held_scenes(COUNT), Icons.load(work)) / 255
    columns = [i * COUNT // 10 for i in range(10)]
    write_sheet([part[columns] * 2 - 1 for part in (real, *drawn.values())], work / "sheets/controls.png")
    scenes = Scenes.load(work, "train").scenes[:30]
    write_sheet(list((pictures(scenes, Icons.load(work)) / 127.5 - 1).split(10)), work / "sheets/scenes-real.png")
