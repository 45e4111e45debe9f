from dataclasses import replace

import pytest
import torch

from diffusemble.evaluation.convnets import WIDTH
from diffusemble.evaluation.features import NETS
from diffusemble.evaluation.scenes.finds import Find
from diffusemble.evaluation.scenes.judge import Recognised, SceneJudge, judge
from diffusemble.evaluation.scenes.probe import SceneProbe, published_accuracy
from diffusemble.evaluation.scenes.scene import Scene, Thing

NAMES, STYLES = ("cat", "fish", "tree"), ("noto", "flat")
CAT, FISH = Thing("cat", (0.1, 0.3, 0.4, 0.6), "red"), Thing("fish", (0.5, 0.3, 0.9, 0.6), "blue")
SCENE = Scene((CAT, FISH), "left of", "noto")


def sure(row, count):
    return torch.where(torch.arange(count) == row, 0.0, -9.0)


def shown(thing, style="noto", box=None):
    """A perfect find of a thing, or the same elsewhere."""
    find = Find(box or thing.box, torch.zeros(3, 4, 4), {c: float(c == thing.colour) for c in ("red", "blue")})
    return Recognised(find, sure(NAMES.index(thing.name), 3), sure(STYLES.index(style), 2))


def judged(*seen):
    return judge(SCENE, seen, NAMES, STYLES)


def test_a_scene_as_asked_is_right_in_every_measure():
    result = judged(shown(FISH), shown(CAT))
    assert result.right
    assert set(result.measures().values()) == {1.0}


def test_an_empty_page_is_wrong_in_every_measure():
    assert set(judged().measures().values()) == {0.0}


def test_exchanged_places_keep_things_and_colours_and_lose_the_rest():
    measures = judged(shown(CAT, box=FISH.box), shown(FISH, box=CAT.box)).measures()
    assert measures["attributes"] == measures["colour"] == measures["filled"] == 1
    assert measures["relation"] == measures["instance"] == measures["scene"] == 0


def test_exchanged_colours_keep_the_places():
    red_fish, blue_cat = replace(FISH, colour="red"), replace(CAT, colour="blue")
    measures = judged(shown(blue_cat), shown(red_fish)).measures()
    assert measures["thing"] == measures["relation"] == measures["iou"] == 1
    assert measures["colour"] == measures["attributes"] == measures["instance"] == measures["scene"] == 0


def test_a_wrong_thing_fills_its_place_only():
    tree = Thing("tree", FISH.box, "blue")
    result = judged(shown(CAT), shown(tree))
    assert [seen.filled for seen in result.things] == [1, 1]
    assert [seen.overlap for seen in result.things] == [1, 0]
    assert not result.relation


def test_the_style_is_that_of_most_finds():
    assert not judged(shown(CAT, style="flat"), shown(FISH, style="flat")).style
    assert judged(shown(CAT), shown(FISH), shown(CAT, style="flat")).style


def test_of_several_such_things_the_one_nearest_its_box_counts():
    far = shown(CAT, box=(0.6, 0.7, 0.9, 0.95))
    assert judged(far, shown(CAT), shown(FISH)).things[0].overlap == 1


def test_things_without_a_colour_may_have_any():
    scene = replace(SCENE, things=(replace(CAT, colour=None), FISH))
    assert judge(scene, [shown(replace(CAT, colour="blue")), shown(FISH)], NAMES, STYLES).attributes


def test_a_judge_looks_at_pictures():
    judged = SceneJudge(probe(), lambda crops: torch.zeros(len(crops), WIDTH * len(NETS)))
    image = torch.ones(3, 40, 40)
    image[:, 12:24, 4:16] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    result = judged(image, SCENE)
    assert result.things[0].named  # the first name, since all are alike for these features
    assert result.things[0].coloured
    assert result.things[0].overlap == pytest.approx(1)
    assert not result.things[1].named
    assert judged(torch.ones(3, 40, 40), SCENE).measures()["filled"] == 0


def test_a_judge_refuses_what_its_probe_does_not_know():
    judge_of = SceneJudge(probe(), lambda crops: crops)
    with pytest.raises(ValueError, match="the scene asks for 'dragon'"):
        judge_of(torch.ones(3, 8, 8), Scene((CAT, Thing("dragon", FISH.box)), "on", "noto"))
    with pytest.raises(ValueError, match="the scene asks for 'oil'"):
        judge_of(torch.ones(3, 8, 8), replace(SCENE, style="oil"))


def probe():
    made = SceneProbe(NAMES, STYLES)
    for layer in (made.thing, made.style):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return made


def test_a_probe_comes_back_from_its_file(tmp_path):
    made = SceneProbe(NAMES, STYLES)
    made.save(tmp_path / "probe.safetensors", {"held-out": 0.9})
    again = SceneProbe.load(tmp_path / "probe.safetensors")
    features = torch.randn(2, WIDTH * len(NETS), generator=torch.Generator().manual_seed(0))
    for first, second in zip(made(features), again(features), strict=True):
        assert torch.allclose(first, second, atol=2e-2)
    assert published_accuracy(tmp_path / "probe.safetensors")["held-out"] == 0.9
    with pytest.raises(FileNotFoundError, match=r"python -m recipes\.zoo scenes\.probe"):
        SceneProbe.load(tmp_path / "none.safetensors")
