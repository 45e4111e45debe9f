"""Pictures of the results: losses by timestep, and samples of every system."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from diffusemble.evaluation.config import EvaluateConfig
from diffusemble.evaluation.results import Results
from diffusemble.evaluation.stored import REAL, Scores
from diffusemble.pictures.sheet import Column, contact_sheet
from diffusemble.pictures.text import COLOURS, FAINT, INK

SHEET_ROWS, SHEET_WIDTH = 8, 1300


def draw_losses(results: Results, config: EvaluateConfig, file: Path) -> None:
    """Loss at each timestep, relative to the best single expert, in percent; one line per system."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in results.losses["pair"] if row.kind != "inside"]
    reference = np.array(next(row.by_time for row in results.losses["pair"] if row.name == results.best))
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = iter((*COLOURS, *COLOURS))
    for row in rows:
        main, origin = row.kind == "ensemble", row.kind in ("base", "oracle")
        colour = INK if main else FAINT if origin else next(colours)
        style = ":" if row.kind == "oracle" else "--" if row.kind in ("control", "base") else "-"
        relative = 100 * (np.array(row.by_time) / reference - 1)
        label = row.title.replace("*", "")
        axes.plot(config.times, relative, style, color=colour, lw=2.4 if main else 1.4, marker="o", ms=3, label=label)
    axes.set_xlabel("timestep (1000 is pure noise)")
    axes.set_ylabel(f"held-out loss against {results.best}, %")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if rows:
        axes.legend(frameon=False, fontsize=8, ncols=1, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=110)


def draw_sheet(scores: Scores, file: Path) -> None:
    """The same captions and seeds over all systems, beside the held-out picture; columns are systems."""
    count = min(SHEET_ROWS, len(scores.jobs))
    picked = [number * len(scores.jobs) // count for number in range(count)]

    def images(name: str) -> list[Image.Image]:
        return [Image.fromarray(scores.drawn[name].images[number]) for number in picked]

    shown = [(name, title, kind) for name, title, kind in scores.systems if kind != "inside"]
    colours = iter((*COLOURS, *COLOURS))
    columns = [Column("held out", FAINT, images(REAL))]
    for name, _, kind in shown:
        colour = INK if kind == "ensemble" else FAINT if kind == "base" else next(colours)
        columns.append(Column(name.replace("-", " "), colour, images(name), framed=kind == "ensemble"))
    sheet = contact_sheet([scores.jobs[number].text for number in picked], columns)
    size = (SHEET_WIDTH, round(sheet.height * SHEET_WIDTH / sheet.width))
    sheet.resize(size, Image.Resampling.LANCZOS).save(file, quality=82, method=6)
