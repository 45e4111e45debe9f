"""Scenes within a memory budget: the same pictures."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from diffusemble.app.cli import app
from diffusemble.config.units import parse_bytes
from diffusemble.scene.cast import load_cast
from diffusemble.scene.config import SceneConfig
from diffusemble.scene.draw import draw_scene


def two(files: Any) -> list[Any]:
    """A control on the base, and another model."""
    control = {"kind": "image-prompt", "source": files["image-prompt.safetensors"], "encoder": files["encoder"]}
    return [control, f"model:{files['fern']}"]


def test_the_least_that_a_scene_needs_is_said_and_draws_the_same_picture(
    told: Callable[..., dict[str, Any]], files: Any, tmp_path: Path
) -> None:
    settings = told(members=two(files), steps=2, combine="linear")
    with pytest.raises(ValueError, match=r"No plan fits .* smaller pictures \(height, width\)") as refused:
        draw_scene(SceneConfig(**settings, memory_budget="1kB"))
    found = re.search(r"needs is ([\d.]+) (\w+)", str(refused.value))
    assert found is not None
    file = tmp_path / "scene.yaml"
    file.write_text(yaml.safe_dump(settings))
    budget = f"{1.01 * float(found[1]):.2f}{found[2]}"
    done = CliRunner().invoke(app, ["control", str(file), "--memory-budget", budget, "-o", str(tmp_path / "a.png")])
    assert done.exit_code == 0, done.output
    assert "memory plan: 0 of 2 denoisers stay on the device" in done.stderr
    sizes = [
        re.search(rf"{words} ([\d.]+ [kM]B)", output)
        for words, output in (("memory    at most", done.stdout), ("of it weights", done.stderr))
    ]
    taken, planned = (parse_bytes(one[1]) if one else 0 for one in sizes)
    assert 0 < taken <= planned < parse_bytes(budget)
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.tobytes() == draw_scene(SceneConfig(**settings)).images[0].tobytes()


def test_parts_that_members_share_are_one(scene: Callable[..., SceneConfig], files: Any) -> None:
    members = [{"kind": "model", "name": "again", "source": files["base"]}, "plain", f"ensemble:{files['ensemble']}"]
    pipelines = load_cast(scene(members=members)).pipelines
    again, plain, both = (pipelines[name] for name in ("again", "plain", "ensemble"))
    assert again.unet is not plain.unet
    assert again.vae is plain.vae is both.vae
    assert again.text_encoder is plain.text_encoder is both.text_encoder.encoders[0]
    assert both.text_encoder.encoders[1] is not plain.text_encoder


@pytest.mark.parametrize(
    "choice",
    [{"storage": "int8"}, {"controls": "visit"}, {"attention_slicing": True}],
    ids=lambda choice: next(iter(choice)),
)
def test_what_a_plan_for_a_scene_cannot_do_is_named(scene: Callable[..., SceneConfig], choice: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"memory\.{next(iter(choice))}: the members of a scene run whole"):
        scene(memory=choice)
