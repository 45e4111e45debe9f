"""Composes scenes from the zoo's icons: `scene(number)` is the same on every machine, `picture(scene)` draws it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

from diffusemble.evaluation.scenes.scene import RELATIONS, Scene, Thing
from recipes.zoo.data import STYLES, fraction, read_concepts, split_of
from recipes.zoo.scenes.layout import arrange, longest_sides
from recipes.zoo.scenes.recolour import recolour

HELD_OUT = 0.1  # of the pairs of things, and of the pairs of colours
PAPER_TOLERANCE = 40  # how far from white the paper around an icon may be, sum over RGB of 0 to 255


@lru_cache
def options() -> dict[str, Any]:
    """`scenes.yaml`."""
    found: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("scenes.yaml").read_text(encoding="utf-8"))
    return found


def held_pair(kind: str, first: str, second: str) -> bool:
    """Whether two things (in any order), or a subject's and an object's colour, never meet in training."""
    words = (first, second) if kind == "colours" else sorted((first, second))
    return fraction(f"scene {kind}:{words[0]}:{words[1]}") < HELD_OUT


def split_of_scene(scene: Scene) -> str:
    """`train`, or what of subject and object is held out: `things` or `colours`; `mixed` if further things clash."""
    subject, other = scene.things[:2]
    if held_pair("things", subject.name, other.name):
        return "things"
    if held_pair("colours", str(subject.colour), str(other.colour)):
        return "colours"
    pairs = itertools.combinations((thing.name for thing in scene.things), 2)
    return "mixed" if any(held_pair("things", *pair) for pair in pairs) else "train"


@dataclass(frozen=True)
class Icons:
    """Cut-out icons of the training split.

    Attributes:
        rgba: (thing, style) -> float `[h w 4]` in 0 to 1, trimmed to the ink.
    """

    rgba: dict[tuple[str, str], Any]

    @classmethod
    def load(cls, work: Path) -> Icons:
        """Cut every thing of `scenes.yaml` out of its white paper, in the styles that the base has seen it in."""
        codes = {concept.name: concept.code for concept in read_concepts()}
        found = {}
        for name, style in itertools.product(options()["things"], STYLES):
            if split_of(name, style) == "train":
                file = work / "data" / style.replace(" ", "-") / f"{codes[name]}.png"
                found[name, style] = cut_out(Image.open(file).convert("RGB"))
        return cls(found)

    def sized(self, name: str, style: str, longest: int) -> tuple[int, int]:
        """Width and height in px of an icon whose longer side is `longest`."""
        height, width = self.rgba[name, style].shape[:2]
        scale = longest / max(height, width)
        return max(1, round(width * scale)), max(1, round(height * scale))


def cut_out(icon: Image.Image) -> Any:
    """Float `[h w 4]` in 0 to 1: what white paper from the border cannot reach is opaque."""
    page = Image.new("RGB", (icon.width + 2, icon.height + 2), "white")
    page.paste(icon, (1, 1))
    paper = page.copy()
    ImageDraw.floodfill(paper, (0, 0), (255, 0, 255), thresh=PAPER_TOLERANCE)
    mask = (np.asarray(paper) != np.array([255, 0, 255])).any(axis=2)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.dstack([np.asarray(page) / 255.0, mask])[box]


def scene(number: int, icons: Icons) -> Scene | None:
    """Scene of a number, or None: some have no room on their page, or things that a style does not have."""
    rng, settings = random.Random(f"scene {number}"), options()
    counts = settings["counts"]
    count, relation = rng.choices(list(counts), list(counts.values()))[0], rng.choice(RELATIONS)
    if relation == "holding":
        count = min(count, 3)
    style, names = rng.choice(list(STYLES)), rng.sample(settings["things"], count)
    if relation == "holding":
        names = [rng.choice(settings["holders"]), *(name for name in names[1:] if name not in settings["holders"])]
        count = len(names)
    colours = rng.sample(settings["colours"], count)
    own = [rng.random() < settings["own_colour"] for _ in names]
    if count < 2 or any((name, style) not in icons.rgba for name in names):
        return None
    sizes = longest_sides(relation, count, settings, rng)
    side = settings["side"]
    boxes = arrange(relation, [icons.sized(n, style, s) for n, s in zip(names, sizes, strict=True)], side, rng)
    if boxes is None:
        return None
    things = (
        Thing(name, tuple(edge / side for edge in box), None if plain else colour)  # type: ignore[arg-type]
        for name, box, colour, plain in zip(names, boxes, colours, own, strict=True)
    )
    return Scene(tuple(things), relation, style)


def scenes(icons: Icons, splits: tuple[str, ...], count: int, *, coloured: bool = False) -> Iterator[Scene]:
    """The first `count` scenes of some splits; `coloured`: only such whose things all have a colour."""
    every = (scene(number, icons) for number in itertools.count())
    fit = (s for s in every if s and split_of_scene(s) in splits)
    return itertools.islice((s for s in fit if not coloured or all(t.colour for t in s.things)), count)


def picture(asked: Scene, icons: Icons) -> Any:
    """uint8 `[side side 3]`: the scene on white; the second thing before the first, later ones nowhere near."""
    side = options()["side"]
    page = np.ones((side, side, 3))
    for thing in asked.things:
        left, top, right, bottom = (round(edge * side) for edge in thing.box)
        ink = paint(icons.rgba[thing.name, asked.style], thing.colour, asked.style, (right - left, bottom - top))
        alpha = ink[..., 3:]
        part = page[top:bottom, left:right]
        page[top:bottom, left:right] = part + (ink[..., :3] - part) * alpha
    return (page * 255).round().astype(np.uint8)


def paint(rgba: Any, colour: str | None, style: str, size: tuple[int, int]) -> Any:
    """An icon in a colour, `[h w 4]` of a size (width, height)."""
    mask = rgba[..., 3] > 0.5
    pixels = recolour(rgba[..., :3], mask, colour, style) if colour else rgba[..., :3]
    whole = np.dstack([pixels, rgba[..., 3]])
    image = Image.fromarray((whole * 255).round().astype(np.uint8), "RGBA")
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS)) / 255.0
