"""Scores of single pictures as one table in a Parquet file, a row for each number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusemble.evaluation.picture_scores import PictureScores
from diffusemble.evaluation.pictures import Row
from diffusemble.evaluation.stored import Array, Scores

FILE = "scores.parquet"


@dataclass(frozen=True)
class LongTable:
    """Columns of equal length."""

    columns: dict[str, list[Any]]

    def write(self, folder: Path) -> Path:
        """Write ``scores.parquet``; returns the file."""
        import pyarrow
        from pyarrow import parquet

        file = folder / FILE
        parquet.write_table(pyarrow.table(self.columns), file, compression="zstd")
        return file


def zoo_table(scores: Scores, times: Sequence[int]) -> LongTable:
    """Losses of held-out pictures at each timestep, and scores of drawn ones."""
    names = ("system", "kind", "set", "number", "caption", "concept", "style", "topic", "score", "time", "value")
    columns: dict[str, list[Any]] = {name: [] for name in names}

    def add(first: tuple[str, ...], rows: Sequence[Row], score: tuple[str, int | None], values: Array) -> None:
        for number, (row, value) in enumerate(zip(rows, values.tolist(), strict=True)):
            line = (*first, number, row.text, row.concept, row.style, row.topic, *score, float(value))
            for name, cell in zip(names, line, strict=True):
                columns[name].append(cell)

    for name, _, kind in scores.systems:
        for split, rows in scores.rows.items():
            for at, time in enumerate(times):
                add((name, kind, split), rows, ("loss", time), scores.losses[split][name][:, at])
        for score, values in scores.drawn[name].scores.items():
            add((name, kind, "drawn"), scores.jobs, (score, None), values)
    return LongTable(columns)


def picture_table(scores: PictureScores) -> LongTable:
    """Scores of every drawn picture."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("system", "kind", "number", "prompt", "category", "repeat", "score", "value")
    }
    for metric, found in scores.images.items():
        for name, _, kind in scores.systems:
            for job, value in zip(scores.jobs, found[name].tolist(), strict=True):
                prompt = scores.prompts[job.prompt]
                line = (name, kind, job.number, prompt.text, prompt.category, job.repeat, metric, value)
                for column, cell in zip(columns.values(), line, strict=True):
                    column.append(cell)
    return LongTable(columns)
