"""One command from held-out scenes of the zoo to a page of results."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusemble.evaluation.features import AllNets
from diffusemble.evaluation.page import write_page
from diffusemble.evaluation.parquet import LongTable
from diffusemble.evaluation.scenes import held
from diffusemble.evaluation.scenes.bench import SceneScores, Tell, measure_systems, read_scene_scores
from diffusemble.evaluation.scenes.config import ScenesConfig
from diffusemble.evaluation.scenes.drawing import as_config
from diffusemble.evaluation.scenes.figure import measures_figure
from diffusemble.evaluation.scenes.judge import SceneJudge
from diffusemble.evaluation.scenes.page import COMPARED, sections, settings_of
from diffusemble.evaluation.scenes.probe import HEADS, SceneProbe
from diffusemble.evaluation.scenes.scene import Scene
from diffusemble.evaluation.store import Store
from diffusemble.provenance import versions
from diffusemble.settings import dump_config

CONFIG_FILE, FIGURE = "config.yaml", "measures.png"


def evaluate_scenes(
    config: ScenesConfig, tell: Tell = lambda share, what: None, judge: SceneJudge | None = None
) -> dict[str, SceneScores]:
    """Draw held-out scenes with every system, judge them, keep the scores, write Parquet and page.

    Args:
        config: see ``ScenesConfig``. What ``config.out`` already holds is neither drawn nor judged again.
        tell: told how far it is, 0 to 1, and what is being done.
        judge: instead of the shipped one.

    Returns:
        Scores by the systems' names.

    Raises:
        ValueError: a system cannot be loaded, or the folder holds another run's scores.
        FileNotFoundError: the nets of the judge are not installed.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    scenes = held.held_scenes(config.count)
    tell(0.0, "loading")
    sees = judge or SceneJudge(SceneProbe.load(), AllNets())
    store = Store(Path(config.out), _identity(config), {"versions": versions()})
    (store.folder / CONFIG_FILE).write_text(dump_config(config), encoding="utf-8")

    def judged(image: Tensor, number: int) -> Mapping[str, float]:
        return sees(image, scenes[number]).measures()

    found = measure_systems(
        config,
        lambda system: [as_config(scene, number, system, config) for number, scene in enumerate(scenes)],
        judged,
        store,
        tell,
    )
    write_scenes(found, config)
    tell(1.0, f"written: {config.report}")
    return found


def redraw_scenes(config: ScenesConfig, names: Sequence[str] = ()) -> Path:
    """Write the page again from the scores in ``config.out``, of all systems or of ``names``; no model is loaded.

    Raises:
        ValueError: there are none of a system, or none of the reference.
    """
    shown = list(dict.fromkeys([*names, config.compared])) if names else []
    found = read_scene_scores(config.out, shown)
    order = shown or [system.name for system in config.systems]
    known = {name: found.pop(name) for name in order if name in found}
    return write_scenes({**known, **found}, config)


def write_scenes(found: Mapping[str, SceneScores], config: ScenesConfig) -> Path:
    """Write ``config.report`` with its tables, and all scores as Parquet beside what is kept; returns the page."""
    long_table(found, held.held_scenes(config.count)).write(Path(config.out))
    page, figure = Path(config.report), measures_figure(found, COMPARED)
    picture = page.with_suffix("") / FIGURE
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    shown = f"![all systems and measures]({picture.parent.name}/{FIGURE})"
    return write_page(page, [*sections(found, config), shown, *settings_of(config)])


def long_table(found: Mapping[str, SceneScores], scenes: Sequence[Scene]) -> LongTable:
    """One row for every system, scene and measure."""
    columns: dict[str, list[Any]] = {key: [] for key in ("system", "scene", "caption", "things", "measure", "value")}
    for name, scores in found.items():
        for measure, values in scores.measures.items():
            for number, (scene, value) in enumerate(zip(scenes, values.tolist(), strict=True)):
                line = (name, number, scene.caption(), len(scene.things), measure, value)
                for column, cell in zip(columns.values(), line, strict=True):
                    column.append(cell)
    return LongTable(columns)


def _identity(config: ScenesConfig) -> dict[str, Any]:
    data = {"scenes": held.FOLDER / "held.jsonl", "probe": HEADS}
    return {
        **config.model_dump(mode="json", include={"base", "count", "steps", "guidance", "scheduler", "batch", "seed"}),
        **{name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for name, file in data.items() if file.is_file()},
    }
