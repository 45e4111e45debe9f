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
from diffusemble.evaluation.scenes import held
from diffusemble.evaluation.scenes.bench import SceneScores, Tell, measure_systems
from diffusemble.evaluation.scenes.config import ScenesConfig
from diffusemble.evaluation.scenes.drawing import as_config
from diffusemble.evaluation.scenes.figure import measures_figure
from diffusemble.evaluation.scenes.judge import SceneJudge
from diffusemble.evaluation.scenes.kept import kept_scores, long_table, open_store
from diffusemble.evaluation.scenes.page import COMPARED, sections, settings_of
from diffusemble.evaluation.scenes.probe import HEADS, SceneProbe

FIGURE = "measures.png"


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
    store = open_store(config, _identity(config))

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
    return write_scenes(kept_scores(config, names), config)


def write_scenes(found: Mapping[str, SceneScores], config: ScenesConfig) -> Path:
    """Write ``config.report`` with its tables, and all scores as Parquet beside what is kept; returns the page."""
    told = [
        {"scene": number, "caption": scene.caption(), "things": len(scene.things)}
        for number, scene in enumerate(held.held_scenes(config.count))
    ]
    long_table(found, told).write(Path(config.out))
    page, figure = Path(config.report), measures_figure(found, COMPARED)
    picture = page.with_suffix("") / FIGURE
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    shown = f"![all systems and measures]({picture.parent.name}/{FIGURE})"
    return write_page(page, [*sections(found, config), shown, *settings_of(config)])


def _identity(config: ScenesConfig) -> dict[str, Any]:
    data = {"scenes": held.FOLDER / "held.jsonl", "probe": HEADS}
    return {
        **config.model_dump(mode="json", include={"base", "count", "steps", "guidance", "scheduler", "batch", "seed"}),
        **{name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for name, file in data.items() if file.is_file()},
    }
