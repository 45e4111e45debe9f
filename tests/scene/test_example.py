"""The scene that ships as an example."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusemble.scene.config import SceneConfig
from diffusemble.settings import load_config

ROOT = Path(__file__).parents[2]


def test_the_example_asks_for_all_three_controls() -> None:
    scene = load_config(SceneConfig, ROOT / "examples" / "scene.yaml")
    assert [member.kind for member in scene.cast] == ["migc", "image-prompt", "interaction"]
    assert (ROOT / str(scene.reference)).is_file()
    assert scene.base == "zoo:scenes"
    assert "examples/scene.yaml" in (ROOT / "docs" / "control.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_example_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusemble.scene.draw import draw_scene

    monkeypatch.chdir(ROOT)
    scene = load_config(SceneConfig, "examples/scene.yaml", ["steps=5", "seeds=[0]", "device=cpu"])
    pictures = draw_scene(scene)
    made = pictures.config.made_with
    assert made is not None
    assert dict(made.calls) == {"migc": 5, "image-prompt": 1, "interaction": 1}
    assert [image.size for image in pictures.images] == [(96, 96)]
    assert list(pictures.alone) == ["migc", "image-prompt", "interaction"]
