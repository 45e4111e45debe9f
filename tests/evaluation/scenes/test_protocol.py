"""The protocol of scenes with a tiny model: what is drawn once, kept, compared, and redrawn without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch import Tensor

from diffusemble.controls import Interaction
from diffusemble.evaluation.protocols import load_evaluation
from diffusemble.evaluation.runs import redraw
from diffusemble.evaluation.scenes import held
from diffusemble.evaluation.scenes.bench import SceneScores, gap, read_scene_scores
from diffusemble.evaluation.scenes.config import ScenesConfig
from diffusemble.evaluation.scenes.drawing import as_config
from diffusemble.evaluation.scenes.judge import SceneJudge
from diffusemble.evaluation.scenes.page import MEASURES, verdict
from diffusemble.evaluation.scenes.probe import SceneProbe
from diffusemble.evaluation.scenes.protocol import evaluate_scenes
from diffusemble.evaluation.scenes.scene import Scene, Thing
from diffusemble.evaluation.scenes.systems import STANDARD
from gated_cases import opened
from tiny import tiny_pipeline, tiny_unet

SCENES = [
    Scene((Thing("cat", (0, 0, 0.5, 1), "red"), Thing("fish", (0.5, 0, 1, 1), None)), "left of", "noto"),
    Scene((Thing("fish", (0, 0, 1, 0.5), "blue"), Thing("cat", (0, 0.5, 1, 1), None)), "above", "flat"),
    Scene((Thing("cat", (0, 0, 0.4, 1), None), Thing("cat", (0.6, 0, 1, 1), "green")), "left of", "noto"),
]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Held-out scenes, and a reference picture for each style."""
    folder = tmp_path / "data"
    (folder / "references").mkdir(parents=True)
    (folder / "held.jsonl").write_text("\n".join(json.dumps(scene.as_row()) for scene in SCENES))
    for style in ("noto", "flat"):
        Image.new("RGB", (8, 8), "red").save(folder / "references" / f"{style}-ghost.png")
    monkeypatch.setattr(held, "FOLDER", folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    tiny_pipeline().save_pretrained(root / "base")
    opened(Interaction, tiny_unet()).save_pretrained(root / "interaction.safetensors")
    return {"base": str(root / "base"), "interaction": str(root / "interaction.safetensors")}


@pytest.fixture
def settings(data: Path, models: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    control = {"kind": "interaction", "source": models["interaction"]}
    systems = [
        {"name": "plain", "members": ["plain"], "prompts": "whole"},
        {"name": "both", "title": "both of them", "members": [control, {"kind": "plain", "window": 0.5}]},
    ]
    files = {"out": str(tmp_path / "out"), "report": str(tmp_path / "page.md")}
    return {
        **files,
        "base": models["base"],
        "systems": systems,
        "count": 3,
        "steps": 2,
        "batch": 2,
        "device": "cpu",
        "reference": "both",
        "bootstrap": 50,
    }


class Eyes(SceneJudge):
    """A judge with a random probe that counts the pictures it has seen."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        probe = SceneProbe(["cat", "fish"], ["noto", "flat"]).eval()
        super().__init__(probe, lambda crops: torch.zeros(len(crops), 2560))
        self.seen = 0

    def __call__(self, image: Tensor, scene: Scene) -> Any:
        self.seen += 1
        assert image.shape == (3, 16, 16)
        return super().__call__(image, scene)


def test_what_is_kept_is_not_done_again(settings: dict[str, Any], tmp_path: Path) -> None:
    judge = Eyes()
    first = evaluate_scenes(ScenesConfig(**{**settings, "only": ["plain"]}), judge=judge)
    assert judge.seen == 6  # the reference is always measured
    assert list(first) == ["plain", "both"]
    again = evaluate_scenes(ScenesConfig(**settings), judge=judge)
    assert judge.seen == 6
    for name, scores in again.items():
        assert set(scores.measures) == set(MEASURES)
        for measure, values in scores.measures.items():
            assert values.shape == (3,)
            np.testing.assert_array_equal(values, first[name].measures[measure])
    assert (again["plain"].calls, again["both"].calls) == (2, 3)
    assert {name: one.title for name, one in read_scene_scores(settings["out"]).items()} == {
        "plain": "plain",
        "both": "both of them",
    }
    table = parquet.read_table(tmp_path / "out" / "scores.parquet").to_pydict()
    assert len(table["value"]) == 2 * 3 * len(MEASURES)
    page = (tmp_path / "page.md").read_text()
    assert "# Scenes" in page
    assert "both of them" in page
    (tmp_path / "page.md").unlink()
    assert redraw(settings["out"]).read_text() == page


def test_other_weights_are_other_pictures(settings: dict[str, Any], tmp_path: Path) -> None:
    judge = Eyes()
    evaluate_scenes(ScenesConfig(**settings), judge=judge)
    control = opened(Interaction, tiny_unet(), seed=9)
    control.save_pretrained(tmp_path / "other.safetensors")
    changed = [settings["systems"][0], {**settings["systems"][1]}]
    changed[1]["members"] = [{"kind": "interaction", "source": str(tmp_path / "other.safetensors")}, "plain"]
    evaluate_scenes(ScenesConfig(**{**settings, "systems": changed}), judge=judge)
    assert judge.seen == 6 + 3
    with pytest.raises(ValueError, match="holds the scores of another run: its steps was 2, now 3"):
        evaluate_scenes(ScenesConfig(**{**settings, "steps": 3}), judge=judge)


def test_members_are_told_of_their_part_alone(settings: dict[str, Any]) -> None:
    config = ScenesConfig(**settings)
    whole, own = config.systems
    scene = as_config(SCENES[0], 0, own, config)
    assert scene.prompt == "red cat left of fish, noto style"
    assert [member.prompt for member in scene.members] == ["cat left of fish", None]
    assert as_config(SCENES[0], 0, whole, config).members[0].prompt is None
    assert [each.described for each in scene.instances] == ["red cat", "fish"]
    assert as_config(SCENES[2], 2, own, config).relations[0].object == "1 cat"


def test_the_standard_systems_are_members_amdm_and_peers(data: Path) -> None:
    config = ScenesConfig()
    assert config.compared == "amdm"
    assert [len(system.members) for system in STANDARD] == [1, 1, 1, 1, *[3] * (len(STANDARD) - 4)]
    for system in STANDARD:
        assert as_config(SCENES[0], 0, system, config).cast == as_config(SCENES[0], 0, system, config).members
    assert isinstance(load_evaluation("scenes", None, ["count=4", "only=[base]"]), ScenesConfig)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["only=[bsae]"], r"there is no system 'bsae' \(did you mean 'base'\?\)"),
        (["reference=linaer"], r"did you mean 'linear'\?"),
        (["systems=[{name: a, members: [plain]}, {name: a, members: [plain]}]"], "two systems are called 'a'"),
        (["systems=[{name: a b, members: [plain]}]"], "systems.0.name"),
        (["systems=[{name: a, members: []}]"], "at least 1 item"),
        (["scheduler=dimm"], "there is no scheduler 'dimm'"),
    ],
)
def test_mistakes_are_explained(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_evaluation("scenes", None, overrides)


def test_coco_mig_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"needs data .*; prompts, base, systems are missing\. Get mig_bench\.json"):
        load_evaluation("coco-mig")
    with pytest.raises(ValueError, match="systems is missing"):
        load_evaluation("coco-mig", None, ["prompts=a.json", "base=sd15"])


def scores(title: str, *right: float) -> SceneScores:
    return SceneScores(title, dict.fromkeys(MEASURES, np.array(right)), 1.0, 1.0)


def test_the_verdict_compares_with_the_best_single_member(settings: dict[str, Any]) -> None:
    config = ScenesConfig(**settings)
    clear = {"plain": scores("plain", *[0.0] * 20), "both": scores("both of them", *[1.0] * 20)}
    assert "both of them: 100.0 % of the scenes come out right, against 0.0 %" in verdict(clear, config)
    assert "better" in verdict(clear, config)
    same = {"plain": scores("plain", 1.0, 0.0), "both": scores("both of them", 1.0, 0.0)}
    assert "no clear difference" in verdict(same, config)
    assert gap(same["both"], same["plain"], "scene", config).value == 0
