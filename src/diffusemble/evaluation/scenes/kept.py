"""What a protocol of scenes keeps on disk: its configuration, pictures and scores, and one long table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusemble.evaluation.parquet import LongTable
from diffusemble.evaluation.scenes.bench import SceneScores, read_scene_scores
from diffusemble.evaluation.scenes.config import SceneBenchConfig
from diffusemble.evaluation.store import Store
from diffusemble.provenance import versions
from diffusemble.settings import dump_config

CONFIG_FILE = "config.yaml"


def open_store(config: SceneBenchConfig, identity: Mapping[str, Any]) -> Store:
    """Where pictures and scores go, with the run's configuration beside them.

    Args:
        config: of the run.
        identity: all that the pictures and scores depend on.

    Raises:
        ValueError: the folder holds another run's scores.
    """
    store = Store(Path(config.out), identity, {"versions": versions()})
    (store.folder / CONFIG_FILE).write_text(dump_config(config), encoding="utf-8")
    return store


def kept_scores(config: SceneBenchConfig, names: Sequence[str] = ()) -> dict[str, SceneScores]:
    """Scores in ``config.out``, of all systems or of ``names`` and the one they are compared with.

    Without names, systems of the configuration come first and in its order.

    Raises:
        ValueError: there are none of a system, or none of the reference.
    """
    shown = list(dict.fromkeys([*names, config.compared])) if names else []
    found = read_scene_scores(config.out, shown)
    order = shown or [system.name for system in config.systems]
    known = {name: found.pop(name) for name in order if name in found}
    return {**known, **found}


def long_table(found: Mapping[str, SceneScores], pictured: Sequence[Mapping[str, Any]]) -> LongTable:
    """One row for every system, picture and measure; ``pictured`` says what each picture was asked to show."""
    columns: dict[str, list[Any]] = {key: [] for key in ("system", *pictured[0], "measure", "value")}
    for name, scores in found.items():
        for measure, values in scores.measures.items():
            for told, value in zip(pictured, values.tolist(), strict=True):
                line = (name, *told.values(), measure, value)
                for column, cell in zip(columns.values(), line, strict=True):
                    column.append(cell)
    return LongTable(columns)
