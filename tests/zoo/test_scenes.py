import random
from itertools import combinations, product

import numpy as np
import pytest
from PIL import Image, ImageDraw

from diffusemble.evaluation.scenes.boxes import iou, stands
from diffusemble.evaluation.scenes.finds import finds
from diffusemble.evaluation.scenes.ink import HUES
from diffusemble.evaluation.scenes.scene import RELATIONS
from recipes.zoo.data import STYLES, read_concepts
from recipes.zoo.scenes.compose import (
    Icons,
    cut_out,
    held_pair,
    options,
    scene,
    scenes,
    split_of_scene,
)
from recipes.zoo.scenes.data import pictures
from recipes.zoo.scenes.layout import arrange
from recipes.zoo.scenes.recolour import SHADES, recolour


@pytest.fixture(scope="module")
def icons() -> Icons:
    """Grey discs with an eye, cut out as the artists' icons are."""
    icon = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(icon).ellipse((6, 12, 58, 52), fill=(120, 110, 100))
    ImageDraw.Draw(icon).ellipse((26, 26, 36, 36), fill="white")
    return Icons(dict.fromkeys(product(options()["things"], STYLES), cut_out(icon)))


def test_things_are_known_to_the_zoo_and_colours_to_the_measures():
    assert set(options()["things"]) <= {concept.name for concept in read_concepts()}
    assert set(options()["holders"]) <= set(options()["things"])
    assert set(options()["colours"]) == set(SHADES) == set(HUES)


def test_a_number_is_always_the_same_scene(icons):
    assert [scene(n, icons) for n in range(30)] == [scene(n, icons) for n in range(30)]


def test_scenes_have_what_they_say(icons):
    made = list(scenes(icons, ("train", "things", "colours", "mixed"), 300))
    assert {one.relation for one in made} == set(RELATIONS)
    assert {len(one.things) for one in made} == {2, 3, 4, 5}
    for one in made:
        boxes = [thing.box for thing in one.things]
        assert stands(one.relation, *boxes[:2])
        pairs = list(combinations(boxes, 2))[0 if one.relation not in ("on", "holding") else 1 :]
        assert max((iou(*pair) for pair in pairs), default=0.0) == 0
        assert len({thing.name for thing in one.things}) == len(one.things)


def test_training_scenes_have_no_held_out_pair(icons):
    for one in scenes(icons, ("train",), 200):
        assert split_of_scene(one) == "train"
        assert not any(held_pair("things", a.name, b.name) for a, b in combinations(one.things, 2))
    for one in scenes(icons, ("colours",), 10, coloured=True):
        assert held_pair("colours", *(thing.colour for thing in one.things[:2]))
    for one in scenes(icons, ("things",), 10, coloured=True):
        assert held_pair("things", *(thing.name for thing in one.things[:2]))


def test_pairs_of_things_have_no_order_and_pairs_of_colours_have_one():
    names, colours = options()["things"], options()["colours"]
    assert all(held_pair("things", a, b) == held_pair("things", b, a) for a, b in combinations(names, 2))
    assert any(held_pair("colours", a, b) != held_pair("colours", b, a) for a, b in combinations(colours, 2))


def test_every_thing_is_found_in_its_box_and_colour(icons):
    made = list(scenes(icons, ("train",), 20, coloured=True))
    for image, one in zip(pictures(made, icons) / 255, made, strict=True):
        found = finds(image)
        for thing in one.things:
            best = max(found, key=lambda find: iou(find.box, thing.box))
            assert iou(best.box, thing.box) > 0.8
            assert best.colour == thing.colour


def test_cutting_out_keeps_white_inside_the_outline():
    icon = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(icon).ellipse((10, 20, 50, 40), outline="black", width=2)
    cut = cut_out(icon)
    assert cut.shape == (21, 41, 4)
    assert cut[10, 20].tolist() == [1, 1, 1, 1]
    assert cut[0, 0, 3] == 0


@pytest.mark.parametrize("colour", SHADES)
def test_recolouring_keeps_light_and_dark_in_order(colour):
    greys = np.linspace(0.05, 0.9, 12)[None, :, None].repeat(3, axis=2)
    mask = np.ones((1, 12), dtype=bool)
    for style in STYLES:
        shades = recolour(greys, mask, colour, style)[0] @ np.array([0.299, 0.587, 0.114])
        assert (np.diff(shades) > 0).all()


def test_recolouring_leaves_paper_and_white_alone():
    pixels = np.ones((4, 4, 3))
    pixels[1:3, 1:3] = 0.3
    mask = np.ones((4, 4), dtype=bool)
    changed = recolour(pixels, mask, "red", "noto")
    assert (changed[0] == 1).all()
    assert changed[1, 1, 0] > 2 * changed[1, 1, 2]
    assert (recolour(pixels, ~mask, "red", "noto") == pixels).all()


def test_what_does_not_fit_the_page_is_not_arranged():
    assert arrange("left of", [(60, 60), (60, 60)], 96, random.Random(0)) is None
