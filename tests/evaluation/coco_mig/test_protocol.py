"""COCO-MIG end to end: a tiny model draws, detectors of the test look, the page has a row for every system."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pyarrow import parquet

from diffusemble.controls import Gligen
from diffusemble.evaluation.coco_mig.bench import read_bench
from diffusemble.evaluation.coco_mig.protocol import as_config, evaluate_coco_mig, level_table
from diffusemble.evaluation.protocols import load_evaluation
from diffusemble.evaluation.runs import redraw
from diffusemble.evaluation.scenes.bench import SceneScores
from diffusemble.evaluation.scenes.config import CocoMigConfig
from gated_cases import opened
from tiny import tiny_pipeline, tiny_unet

LEFT, RIGHT, TOP = [0, 0, 0.5, 1], [0.5, 0, 1, 1], [0, 0, 1, 0.5]


class Told:
    """Sees every bird in the left half, and nothing else; any mask is the whole picture."""

    def __init__(self) -> None:
        self.pictures = 0

    def find(self, image: Any, thing: str) -> Any:
        self.pictures += 1
        return [((0.0, 0.0, 0.5, 1.0), 0.9)] if thing == "bird" else []

    def segment(self, image: Any, box: Any) -> NDArray[np.bool_]:
        return np.ones(image.shape[:2], dtype=bool)


@pytest.fixture
def config(tmp_path: Path) -> CocoMigConfig:
    things = [("a red bird", LEFT), ("a black cat", RIGHT), ("a white table", TOP)]
    rows = {str(key): {"caption": f"photo {key}", "segment": things[: 2 + key % 2]} for key in range(4)}
    for row in rows.values():
        row["segment"] = [{"label": label, "bbox": box} for label, box in row["segment"]]  # type: ignore[misc, union-attr]
    (tmp_path / "mig_bench.json").write_text(json.dumps(rows))
    tiny_pipeline().save_pretrained(tmp_path / "base")
    opened(Gligen, tiny_unet()).save_pretrained(tmp_path / "gligen.safetensors")
    control = {"kind": "gligen", "source": str(tmp_path / "gligen.safetensors")}
    systems = [{"name": "gligen", "members": [control]}, {"name": "plain", "members": ["plain"]}]
    names = {"prompts": "mig_bench.json", "base": "base", "out": "out", "report": "page.md"}
    files = {key: str(tmp_path / name) for key, name in names.items()}
    drawing = {"steps": 1, "size": 16, "batch": 2, "device": "cpu", "bootstrap": 20}
    made = load_evaluation("coco-mig", None, [], **files, systems=systems, **drawing)
    assert isinstance(made, CocoMigConfig)
    return made


def test_every_prompt_is_drawn_and_looked_at_once(config: CocoMigConfig, tmp_path: Path) -> None:
    eyes = Told()
    found = evaluate_coco_mig(config, detectors=eyes)
    assert eyes.pictures == 2 * (2 + 3 + 2 + 3)
    assert list(found) == ["gligen", "plain"]
    for scores in found.values():
        np.testing.assert_allclose(scores.measures["placed"], [1 / 2, 1 / 3, 1 / 2, 1 / 3])
    evaluate_coco_mig(config, detectors=eyes)
    assert eyes.pictures == 20
    table = parquet.read_table(tmp_path / "out" / "scores.parquet").to_pydict()
    assert set(table["level"]) == {2, 3}
    page = (tmp_path / "page.md").read_text()
    assert "| system | L2 | L3 | average | difference |" in page
    (tmp_path / "page.md").unlink()
    assert redraw(config.out).read_text() == page


def test_scenes_have_the_published_words(config: CocoMigConfig) -> None:
    scene = as_config(read_bench(config.prompts)[1], config.systems[0], config)
    assert (scene.prompt, scene.height, scene.width) == ("photo 1", 16, 16)
    assert [thing.described for thing in scene.instances] == ["a red bird", "a black cat", "a white table"]


def test_averages_are_over_things(config: CocoMigConfig) -> None:
    prompts = read_bench(config.prompts)
    values = np.array([1.0, 0.0, 1.0, 0.0])
    found = {"gligen": SceneScores("g", {"instance": values, "picture": values}, 1, 1)}
    rows = level_table(found, prompts, "instance", "t", config).rows
    assert rows[0][:4] == ["g", 1.0, 0.0, pytest.approx(4 / 10)]
    assert level_table(found, prompts, "picture", "t", config).rows[0][3] == 0.5
