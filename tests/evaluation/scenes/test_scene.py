import pytest

from diffusemble.evaluation.scenes.conditions import instances_of, prompt_for, relations_of
from diffusemble.evaluation.scenes.scene import Scene, Thing

CAT = Thing("cat", (0.1, 0.2, 0.4, 0.5), "red")
FISH = Thing("fish", (0.5, 0.2, 0.9, 0.5), "blue")
TREE = Thing("tree", (0.5, 0.6, 0.9, 0.9))
SCENE = Scene((CAT, FISH, TREE), "left of", "noto")


@pytest.mark.parametrize(
    ("parts", "caption"),
    [
        ({}, "red cat left of blue fish, tree, noto style"),
        ({"style": False}, "red cat left of blue fish, tree"),
        ({"colours": False, "style": False}, "cat left of fish, tree"),
        ({"relation": False, "style": False}, "red cat, blue fish, tree"),
    ],
)
def test_captions_say_what_is_kept(parts, caption):
    assert SCENE.caption(**parts) == caption


def test_rows_give_the_scene_back():
    assert Scene.from_row(SCENE.as_row()) == SCENE


def test_each_control_is_told_its_own_part():
    first, second = relations_of(SCENE)
    assert (first.subject, first.action, first.object) == ("cat", "left of", "fish")
    assert (second.subject, second.action, second.object) == ("tree", "and", "tree")
    assert first.subject_box == CAT.box
    assert first.object_box == FISH.box
    assert instances_of(SCENE) == [("red cat", CAT.box), ("blue fish", FISH.box), ("tree", TREE.box)]
    prompts = {name: prompt_for(name, SCENE) for name in ("interaction", "migc", "image_prompt")}
    assert prompts == {
        "interaction": "cat left of fish, tree",
        "migc": "red cat, blue fish, tree",
        "image_prompt": "cat, fish, tree",
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scene((CAT,), "on", "noto"), "two things at least; got 1"),
        (lambda: Scene((CAT, FISH), "near", "noto"), "Unknown relation 'near'. Choose one of: left of"),
        (lambda: Scene((CAT, Thing("fish", (0.5, 0.2, 1.1, 0.5))), "on", "noto"), "that of 'fish' is"),
        (lambda: Scene((CAT, Thing("fish", (0.5, 0.2, 0.5, 0.5))), "on", "noto"), "left < right"),
        (lambda: prompt_for("depth", SCENE), "got 'depth'"),
    ],
)
def test_what_is_no_scene_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
