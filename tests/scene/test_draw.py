"""Scenes drawn from files: what is computed, what is saved, and that it can be drawn again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from diffusemble.latent.aggregate import aggregate
from diffusemble.pictures.metadata import read_document
from diffusemble.pictures.sheet import cell, enlarge
from diffusemble.scene.cast import load_cast
from diffusemble.scene.config import SceneConfig
from diffusemble.scene.draw import LAYOUT, TOGETHER, ScenePictures, draw_scene
from diffusemble.settings import load_config

Scene = Callable[..., SceneConfig]


def differ(one: Image.Image, other: Image.Image) -> bool:
    return ImageChops.difference(one.convert("RGB"), other.convert("RGB")).getbbox() is not None


@pytest.fixture(scope="module")
def drawn(scene: Scene) -> ScenePictures:
    """Two seeds, compared."""
    return draw_scene(scene(seeds=[0, 5], compare=True, steps=5))


def test_calls_are_the_least_that_the_windows_need(drawn: ScenePictures) -> None:
    made = drawn.config.made_with
    assert made is not None
    assert made.calls == {"interaction": 5, "migc": 1, "image-prompt": 1}  # a fifth of the steps, one batch
    assert made.seconds > 0


def test_a_saved_scene_draws_the_same_bits_again(
    drawn: ScenePictures, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = drawn.save(tmp_path)
    assert saved.sheet is not None
    documents = {read_document(file) for file in (*saved.pictures, *saved.layouts, saved.sheet)}
    assert documents == {saved.settings.read_text(encoding="utf-8")}
    again = draw_scene(load_config(SceneConfig, saved.pictures[1]))
    for one, other in zip(again.images, drawn.images, strict=True):
        assert one.tobytes() == other.tobytes()
    assert again.sheet().tobytes() == drawn.sheet().tobytes()
    assert not [record for record in caplog.records if record.name.startswith("diffusemble")]


def test_every_file_of_a_run_has_one_new_name(drawn: ScenePictures, tmp_path: Path) -> None:
    for number in (1, 2):
        saved = drawn.save(tmp_path)
        stem = f"{number:04d}-cat-on-box"
        assert [file.name for file in saved.pictures] == [f"{stem}-01.png", f"{stem}-02.png"]
        assert [file.name for file in saved.layouts] == [f"{stem}-01-layout.png", f"{stem}-02-layout.png"]
        assert saved.settings.name == f"{stem}.yaml"
    assert len(list(tmp_path.iterdir())) == 12


def test_the_sheet_has_each_member_alone_all_together_and_the_layout(drawn: ScenePictures) -> None:
    assert list(drawn.alone) == ["interaction", "migc", "image-prompt"]
    sheet = drawn.sheet()
    columns = [*drawn.alone.values(), drawn.images, tuple(drawn.layout(number) for number in (0, 1))]
    for column, images in enumerate(columns):
        for row, image in enumerate(images):
            large = enlarge(image)
            left, top = cell(row, column, large.size)
            assert not differ(sheet.crop((left, top, left + large.width, top + large.height)), large)
    pictures = [images[0] for images in (*drawn.alone.values(), drawn.images)]
    assert all(differ(one, other) for at, one in enumerate(pictures) for other in pictures[:at])


def test_alone_is_what_a_member_draws_without_the_others(drawn: ScenePictures, scene: Scene) -> None:
    for number, part in enumerate(drawn.config.members):
        own = draw_scene(scene(members=[part], seeds=[0, 5], steps=5))
        assert own.images[1].tobytes() == drawn.alone[part.name][1].tobytes(), number


def test_what_a_picture_is_drawn_from_is_recorded_and_compared(
    drawn: ScenePictures, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    made = drawn.config.made_with
    assert made is not None
    names = ["base", "interaction", "migc", "image-prompt", "image encoder", "reference"]
    assert [record.name for record in made.experts] == names
    assert all(record.files for record in made.experts)
    changed = made.experts[2].model_copy(update={"files": {"migc.safetensors": "0"}})
    older = made.model_copy(update={"experts": (*made.experts[:2], changed, *made.experts[3:])})
    with caplog.at_level(logging.WARNING):
        draw_scene(scene(steps=1).model_copy(update={"made_with": older}))
    assert "expert 'migc': migc.safetensors has changed" in caplog.text


def test_progress_names_every_part(scene: Scene) -> None:
    seen: list[tuple[float, str]] = []
    draw_scene(scene(steps=2, compare=True), lambda share, what: seen.append((share, what)))
    parts = ["loading members", "interaction", "migc", "image-prompt", TOGETHER]
    assert list(dict.fromkeys(what for _, what in seen)) == parts
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert LAYOUT not in parts


def test_scenes_of_one_batch_are_drawn_each_as_by_itself(scene: Scene, told: Callable[..., dict[str, Any]]) -> None:
    first = scene()
    moved = [{**one, "box": [0.0, 0.3, 0.4, 0.9]} for one in told()["instances"]]
    second = scene(instances=moved, prompt="sun over box")
    cast = load_cast(first)

    def latents(*scenes: SceneConfig, seeds: list[int]) -> torch.Tensor:
        members = cast.members(scenes, output_type="latent")
        return aggregate(members, seed=seeds).latents

    both = latents(first, second, seeds=[3, 4])
    torch.testing.assert_close(both[:1], latents(first, seeds=[3]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both[1:], latents(second, seeds=[4]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", ["linear", "composable", "magicfusion", "superdiff-or", "superdiff-and", "none"])
def test_every_way_to_combine(scene: Scene, way: str) -> None:
    found = draw_scene(scene(combine=way, steps=2))
    assert found.images[0].size == (16, 16)
    assert found.config.combine.name == way


def test_other_models_and_ensembles_take_part(scene: Scene, files: Any) -> None:
    members = [{"kind": "gligen", "source": files["gligen.safetensors"], "prompt": "sun"}, f"model:{files['fern']}"]
    members += [
        "plain",
        {"kind": "ensemble", "source": files["ensemble"], "name": "both", "guidance": 1.0, "window": [0, 0]},
    ]
    found = draw_scene(scene(members=members, combine={"name": "amdm", "options": {"deviation": False}}, height=24))
    made = found.config.made_with
    assert made is not None
    assert dict(made.calls) == {"gligen": 3, "fern": 1, "plain": 1, "both": 1}
    assert found.images[0].size == (16, 24)


def test_without_guidance(scene: Scene) -> None:
    plain = draw_scene(scene(guidance=1.0, steps=2))
    assert differ(plain.images[0], draw_scene(scene(steps=2)).images[0])
