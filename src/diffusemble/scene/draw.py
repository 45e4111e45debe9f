"""From a scene to pictures: load its members, draw with them in step, save with the scene inside."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from diffusemble.latent.aggregate import Member, aggregate
from diffusemble.latent.combine import build_combine
from diffusemble.memory.keep import MemoryReport
from diffusemble.pictures.files import free_stem, read_picture
from diffusemble.pictures.layout import Arrow, Frame, layout_picture
from diffusemble.pictures.metadata import save_png
from diffusemble.pictures.sheet import Column, contact_sheet
from diffusemble.pictures.text import COLOURS, FAINT, INK
from diffusemble.provenance import differences, versions
from diffusemble.registry import SCHEDULERS
from diffusemble.scene.budget import within_memory
from diffusemble.scene.cast import Cast, load_cast
from diffusemble.scene.config import SceneConfig, SceneMadeWith
from diffusemble.settings import dump_config

log = logging.getLogger(__name__)

TOGETHER, LAYOUT = "together", "layout"

Progress = Callable[[float, str], None]
"""Called with the share that is done, 0 to 1, and what is being done."""


@dataclass(frozen=True)
class SavedScene:
    """Files of a run; ``sheet`` where it was asked for."""

    pictures: tuple[Path, ...]
    layouts: tuple[Path, ...]
    sheet: Path | None
    settings: Path


@dataclass(frozen=True)
class ScenePictures:
    """Everything that was drawn of a scene.

    Attributes:
        images: one for each seed.
        config: the scene, with what it was drawn with, denoiser calls and seconds; draws the same pictures again.
        alone: what each member drew alone, by its name; empty without a comparison, or with one member.
        memory: the memory plan and what it took, if there was one.
    """

    images: tuple[Image.Image, ...]
    config: SceneConfig
    alone: Mapping[str, tuple[Image.Image, ...]]
    memory: MemoryReport | None = None

    def layout(self, number: int = 0) -> Image.Image:
        """Picture ``number`` (from 0) under its boxes, phrases and relations."""
        return scene_layout(self.config, self.images[number])

    def sheet(self) -> Image.Image:
        """A row for each seed: every member alone, all together, and the layout."""
        colours = dict(zip(self.alone, COLOURS, strict=False))
        columns = [Column(name, colours.get(name, FAINT), images) for name, images in self.alone.items()]
        columns.append(Column(TOGETHER, INK, self.images, framed=True))
        if self.config.instances:
            layouts = [self.layout(number) for number in range(len(self.images))]
            columns.append(Column(LAYOUT, FAINT, layouts))
        words = self.config.words
        labels = [f"{words} (seed {seed})" for seed in self.config.seeds]
        scheduler = SCHEDULERS[self.config.scheduler].title
        footer = [self.config.combine.name, f"{self.config.steps} steps of {scheduler}"]
        return contact_sheet(labels, columns, ", ".join([*footer, f"guidance {self.config.guidance:g}"]))

    def save(self, out: str | Path | None = None) -> SavedScene:
        """Write pictures, layouts, sheet and scene under a new name; nothing is overwritten.

        Args:
            out: a folder, or a file name that ends with ``.png``; that of the scene by default.
        """
        several = len(self.images) > 1
        counters = [f"-{number:02d}" if several else "" for number, _ in enumerate(self.images, start=1)]
        ends = [f"{counter}{end}" for counter in counters for end in (".png", "-layout.png")]
        stem = free_stem(Path(out or self.config.out), self.config.words, [*ends, "-compare.png", ".yaml"])
        document = dump_config(self.config)
        drawn, layouts = [], []
        for number, (image, counter) in enumerate(zip(self.images, counters, strict=True)):
            notes = {"prompt": self.config.words, "seed": str(self.config.seeds[number])}
            drawn.append(save_png(image, f"{stem}{counter}.png", document, notes))
            if self.config.instances:
                layouts.append(save_png(self.layout(number), f"{stem}{counter}-layout.png", document, notes))
        sheet = save_png(self.sheet(), f"{stem}-compare.png", document, {}) if self.config.compare else None
        settings = Path(f"{stem}.yaml")
        settings.write_text(document, encoding="utf-8")
        return SavedScene(tuple(drawn), tuple(layouts), sheet, settings)


def draw_scene(scene: SceneConfig, progress: Progress | None = None) -> ScenePictures:
    """Draw a scene with all its members in step.

    Args:
        scene: see ``SceneConfig``.
        progress: told how far the drawing is.

    Returns:
        The pictures in memory; ``.save()`` writes them with their scene.

    Raises:
        ValueError: members cannot be loaded or do not go together, or the scene does not fit them.
    """
    tell = progress or (lambda share, what: None)
    tell(0.0, "loading members")
    build_combine(scene.combine.name, **scene.combine.options)  # options are checked before anything is loaded
    if any(part.kind == "image-prompt" for part in scene.cast):
        read_picture(scene.reference or "", "reference")
    cast = load_cast(scene)
    drawing = _Drawing(scene, cast, tell)
    with within_memory(scene, cast) as keeper:
        compared = scene.compare and len(cast.parts) > 1
        alone = {part.name: drawing.draw(number) for number, part in enumerate(cast.parts) if compared}
        drawing.calls.clear()
        began = time.perf_counter()
        images = drawing.draw()
        seconds = round(time.perf_counter() - began, 2)
        memory = None if keeper is None else keeper.report()
    now = SceneMadeWith(
        versions=versions(),
        device=cast.placed,
        aggregator=scene.combine.name,
        experts=cast.records,
        calls=dict(drawing.calls),
        seconds=seconds,
    )
    for difference in differences(scene.made_with, now) if scene.made_with else ():
        log.warning("The picture may differ from the saved one: %s.", difference)
    return ScenePictures(images, scene.model_copy(update={"made_with": now}), alone, memory)


def scene_layout(scene: SceneConfig, image: Image.Image) -> Image.Image:
    """The scene's boxes, phrases and relations over a picture."""
    numbers = {instance.name: number for number, instance in enumerate(scene.instances)}
    frames = [Frame(instance.described, instance.box) for instance in scene.instances]
    arrows = [Arrow(each.action, numbers[each.subject], numbers[each.object]) for each in scene.relations]
    return layout_picture(image, frames, arrows)


class _Drawing:
    """Draws the scene with all members, or with one alone; counts denoiser calls of the former."""

    def __init__(self, scene: SceneConfig, cast: Cast, tell: Progress) -> None:
        self.scene, self.cast, self.tell = scene, cast, tell
        self.calls: Counter[str] = Counter()
        self.ways = len(cast.parts) + 1 if scene.compare and len(cast.parts) > 1 else 1
        self.done = 0

    def draw(self, alone: int | None = None) -> tuple[Image.Image, ...]:
        """One picture for each seed, of member ``alone`` or of all."""
        images: list[Image.Image] = []
        seeds = self.scene.seeds
        for start in range(0, len(seeds), self.scene.batch):
            part = seeds[start : start + self.scene.batch]
            images += self._batch(part, alone, start / len(seeds), len(part) / len(seeds))
        self.done += 1
        return tuple(images)

    def _batch(self, seeds: Sequence[int], alone: int | None, begun: float, size: float) -> list[Image.Image]:
        scene = self.scene
        what = TOGETHER if alone is None else self.cast.parts[alone].name

        def step_done(pipe: Any, index: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
            share = begun + size * min(1.0, (index + 1) / scene.steps)
            self.tell((self.done + share) / self.ways, what)
            return state

        scenes = [scene] * len(seeds)
        members: list[Member] = self.cast.members(scenes, callback_on_step_end=step_done)
        if alone is not None:
            call = {**members[alone].call, "callback_on_step_end": step_done}
            members = [replace(members[alone], call=call, window=None)]
        way, options = scene.combine.name, scene.combine.options
        found = aggregate(members, way, options, seed=list(seeds), shared_noise=scene.shared_noise)
        self.calls.update(found.calls)
        return list(found.images)
