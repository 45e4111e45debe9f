"""COCO-MIG's formulas on pictures and finds whose scores are known."""

from __future__ import annotations

import colorsys
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusemble.evaluation.coco_mig.bench import MigPrompt, instance_of, read_bench
from diffusemble.evaluation.coco_mig.colours import RANGES, colour_share, to_hsv
from diffusemble.evaluation.coco_mig.measures import check, measures, suppressed

BOX = (0.0, 0.0, 0.5, 0.5)
PURE = {
    "red": (255, 0, 0),
    "yellow": (255, 255, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "brown": (139, 69, 19),
    "black": (10, 10, 10),
    "white": (250, 250, 250),
}


def test_hue_saturation_and_value_are_those_of_the_hexcone() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (40, 25, 3), dtype=np.uint8)
    colours[0, :4] = [(0, 0, 0), (255, 255, 255), (7, 7, 7), (255, 0, 1)]
    found = to_hsv(colours).astype(int)
    for pixel, (hue, saturation, value) in zip(colours.reshape(-1, 3), found.reshape(-1, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
        assert min(abs(hue - 180 * h), 180 - abs(hue - 180 * h)) <= 0.5 + 1e-6
        assert abs(saturation - 255 * s) <= 0.5 + 1e-6
        assert value == round(255 * v)
    assert found[..., 0].max() < 180


@pytest.mark.parametrize("colour", RANGES)
def test_pure_colours_are_themselves_and_brown_is_the_only_overlap(colour: str) -> None:
    image = np.tile(np.array(PURE[colour], dtype=np.uint8), (4, 5, 1))
    seen = {name for name in RANGES if colour_share(image, np.ones((4, 5), dtype=bool), name) == 1}
    assert seen == {colour}
    orange = np.tile(np.array((255, 165, 0), dtype=np.uint8), (2, 2, 1))  # hue 19
    deep = np.tile(np.array((255, 200, 0), dtype=np.uint8), (2, 2, 1))  # hue 24
    every = np.ones((2, 2), dtype=bool)
    assert colour_share(orange, every, "brown") == 1
    assert colour_share(orange, every, "yellow") == 0
    assert colour_share(deep, every, "brown") == colour_share(deep, every, "yellow") == 1


def test_a_share_is_of_the_mask_alone() -> None:
    image = np.zeros((10, 10, 3), dtype=np.uint8)
    image[:, :3] = PURE["red"]
    mask = np.zeros((10, 10), dtype=bool)
    mask[:5, :6] = True
    assert colour_share(image, mask, "red") == 0.5
    assert colour_share(image, np.zeros((10, 10), dtype=bool), "red") == 0
    with pytest.raises(ValueError, match="Unknown colour 'pink'"):
        colour_share(image, mask, "pink")


def share(value: float) -> Any:
    return lambda: value


def test_a_thing_in_its_place_counts_by_its_colour() -> None:
    right = check([(BOX, 0.9)], BOX, share(0.2))
    assert (right.placed, right.coloured, right.right, right.overlap) == (True, True, True, 1.0)
    grey = check([(BOX, 0.9)], BOX, share(0.199))
    assert (grey.placed, grey.coloured, grey.right, grey.overlap) == (True, False, False, 0.0)


def test_a_misplaced_thing_keeps_its_overlap_whatever_its_colour() -> None:
    def never() -> float:
        raise AssertionError("the colour of a misplaced thing is not looked at")

    third = check([((0.25, 0.0, 0.75, 0.5), 0.9)], BOX, never)
    assert (third.right, third.overlap) == (False, pytest.approx(1 / 3))
    nothing = check([], BOX, never)
    assert (nothing.placed, nothing.overlap) == (False, 0.0)


def test_half_is_in_place() -> None:
    assert check([((0.0, 0.0, 0.5, 0.25), 0.9)], BOX, share(1)).placed
    assert not check([((0.0, 0.0, 0.5, 0.249), 0.9)], BOX, share(1)).placed


def test_the_best_of_all_finds_counts_but_not_shadows_of_surer_ones() -> None:
    near, far = (0.0, 0.0, 0.5, 0.45), (0.0, 0.0, 0.5, 0.55)
    assert suppressed([(far, 0.3), (near, 0.9), (BOX, 0.5)]) == [near]  # both overlap it by more than 0.8
    assert check([(near, 0.9), (BOX, 0.5)], BOX, share(1)).overlap == pytest.approx(0.9)
    apart = (0.6, 0.6, 1.0, 1.0)
    assert suppressed([(BOX, 0.3), (apart, 0.9)]) == [apart, BOX]


class Told:
    """Detectors that see what a test tells them."""

    def __init__(self, **found: list[tuple[tuple[float, ...], float]]) -> None:
        self.found = found

    def find(self, image: Any, thing: str) -> Any:
        return self.found.get(thing.replace(" ", "_"), [])

    def segment(self, image: Any, box: tuple[float, ...]) -> NDArray[np.bool_]:
        height, width = image.shape[:2]
        mask = np.zeros((height, width), dtype=bool)
        mask[int(box[1] * height) : int(box[3] * height), int(box[0] * width) : int(box[2] * width)] = True
        return mask


def test_a_picture_is_judged_thing_by_thing() -> None:
    image = np.full((20, 20, 3), 250, dtype=np.uint8)
    image[:10, :10] = PURE["red"]
    instances = (instance_of("a red bird", [0, 0, 0.5, 0.5]), instance_of("a blue dining table", [0.5, 0.5, 1, 1]))
    prompt = MigPrompt("7", "a photo", instances)
    both = Told(bird=[(BOX, 0.9)], dining_table=[((0.5, 0.5, 1.0, 1.0), 0.4)])
    assert measures(image, prompt, both) == {"instance": 0.5, "miou": 0.5, "picture": 0.0, "placed": 1.0}
    image[10:, 10:] = PURE["blue"]
    assert measures(image, prompt, both) == {"instance": 1.0, "miou": 1.0, "picture": 1.0, "placed": 1.0}
    elsewhere = Told(bird=[(BOX, 0.9)], dining_table=[((0.75, 0.5, 1.0, 1.0), 0.4)])
    assert measures(image, prompt, elsewhere)["miou"] == 0.75  # half of its box is enough
    nothing = Told(bird=[(BOX, 0.9)])
    assert measures(image, prompt, nothing) == {"instance": 0.5, "miou": 0.5, "picture": 0.0, "placed": 0.5}


def test_labels_are_taken_apart() -> None:
    table = instance_of("a black dining table", [0, 0, 1, 1])
    assert (table.colour, table.thing, table.box) == ("black", "dining table", (0, 0, 1, 1))
    for label in ("a bird", "a pink bird", "red"):
        with pytest.raises(ValueError, match="A label is an article, a colour"):
            instance_of(label, [0, 0, 1, 1])
    with pytest.raises(ValueError, match="shares of the picture, 0 to 1; that of 'a red bird'"):
        instance_of("a red bird", [0, 0, 512, 512])


def test_the_list_of_prompts_is_read_at_even_distances(tmp_path: Path) -> None:
    file = tmp_path / "mig_bench.json"
    segment = [{"label": "a red bird", "bbox": [0, 0, 0.5, 1]}, {"label": "a blue bird", "bbox": [0.5, 0, 1, 1]}]
    file.write_text(json.dumps({str(key): {"caption": f"photo {key} ", "segment": segment} for key in range(6)}))
    assert [prompt.key for prompt in read_bench(file)] == list("012345")
    assert [(prompt.key, prompt.caption, prompt.level) for prompt in read_bench(file, 2)] == [
        ("0", "photo 0", 2),
        ("3", "photo 3", 2),
    ]
    for text in ("[1]", "{", '{"0": {"caption": "x"}}'):
        file.write_text(text)
        with pytest.raises(ValueError, match="is not COCO-MIG's list of prompts"):
            read_bench(file)
    with pytest.raises(ValueError, match=r"There is no file .*absent.json\. Get mig_bench"):
        read_bench(tmp_path / "absent.json")
