"""What a scene can ask of its members that they cannot do: one message each, before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffusemble.scene.config import SceneConfig
from diffusemble.scene.draw import draw_scene
from tiny_dit import tiny_chroma_pipeline

Scene = Callable[..., SceneConfig]


def member(files: Any, kind: str, **settings: Any) -> dict[str, Any]:
    return {"kind": kind, "source": files[f"{kind}.safetensors"], **settings}


def things(count: int) -> list[dict[str, Any]]:
    return [{"name": f"thing {number}", "box": [0.1 * number, 0, 0.1 * number + 0.2, 1]} for number in range(count)]


@pytest.mark.parametrize(
    ("kind", "count", "message"),
    [
        ("migc", 4, "The scene has 4 instances, and the weights of member 'migc' have 3 slots"),
        ("gligen", 6, "The scene has 6 instances, and the weights of member 'gligen' have 5 slots"),
        ("interaction", 6, "The scene has 6 relations (instances in none count, too), and the weights of member"),
    ],
)
def test_more_than_there_are_slots(scene: Scene, files: Any, kind: str, count: int, message: str) -> None:
    members = [member(files, kind)]
    full = scene(members=members, instances=things(count - 1), relations=[], steps=1)
    draw_scene(full)
    with pytest.raises(ValueError) as caught:
        draw_scene(scene(members=members, instances=things(count), relations=[]))
    assert message in str(caught.value)
    assert "Leave some out" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": "absent.png"}, "reference: there is no file absent.png (looked in "),
        ({"reference": __file__}, "reference: this is no picture: "),
        ({"reference": "absent.png", "base": "absent/"}, "reference: there is no file"),  # before anything is loaded
        ({"members": ["migc"]}, "The member 'migc' needs the weights of its control, and only the base zoo:scenes"),
        ({"members": [{"kind": "migc", "source": "absent.safetensors"}]}, "absent.safetensors"),
        ({"members": [{"kind": "migc", "source": "zoo:gligen"}]}, "the zoo has the controls interaction, migc"),
        ({"members": ["model:zoo:topics"]}, "A member is one model, and zoo:topics is a group of 3"),
        ({"members": ["ensemble:zoo:dragons"]}, "The zoo has no trained ensemble 'dragons'"),
        ({"base": "absent/"}, "There is no file or folder absent/"),
        ({"combine": {"name": "amdm", "options": {"mixx": 1}}}, "Combining by 'amdm' has no option 'mixx'"),
        ({"combine": {"name": "masks"}}, "Combining by 'masks', option 'masks'"),
    ],
)
def test_what_is_missing_is_named(scene: Scene, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        draw_scene(scene(**settings))
    assert message in str(caught.value)


def test_a_base_without_a_unet_is_refused(scene: Scene, tmp_path: Path) -> None:
    tiny_chroma_pipeline(0).save_pretrained(tmp_path / "chroma")
    with pytest.raises(ValueError, match=r"model with a U-Net .* is of ChromaPipeline. Give another base"):
        draw_scene(scene(base=str(tmp_path / "chroma")))


def test_weights_of_another_kind(scene: Scene, files: Any) -> None:
    wrong = {"kind": "gligen", "source": files["interaction.safetensors"]}
    with pytest.raises(ValueError, match="holds a control of the kind 'interaction', not 'gligen'"):
        draw_scene(scene(members=[wrong]))


def test_image_prompts_need_one_encoder(scene: Scene, files: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs the picture encoder that its weights were trained with"):
        draw_scene(scene(members=[member(files, "image-prompt")]))
    with pytest.raises(ValueError, match="is no folder of a picture encoder"):
        draw_scene(scene(members=[member(files, "image-prompt", encoder=str(tmp_path))]))
    other = member(files, "image-prompt", encoder=str(tmp_path), name="other")
    with pytest.raises(ValueError, match="share a picture encoder"):
        draw_scene(scene(members=[member(files, "image-prompt", encoder=files["encoder"]), other]))


def test_a_base_has_no_window(scene: Scene, files: Any) -> None:
    with pytest.raises(ValueError, match="The first member is the base and draws the whole picture"):
        draw_scene(scene(members=[member(files, "migc", window=0.5)]))
