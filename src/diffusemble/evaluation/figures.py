"""Pictures of the results: losses by timestep, and samples of every system."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffusemble.evaluation.config import EvaluateConfig
from diffusemble.evaluation.results import Results
from diffusemble.evaluation.statistics import Interval
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
    colours = iter((*COLOURS, *COLOURS, *COLOURS))
    for row in rows:
        main, origin = row.kind == "ensemble", row.kind in ("base", "oracle")
        colour = INK if main else FAINT if origin else next(colours, FAINT)
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
    picked = spread(len(scores.jobs), SHEET_ROWS)

    def images(name: str) -> list[Image.Image]:
        return [Image.fromarray(scores.drawn[name].images[number]) for number in picked]

    columns = [Column("held out", FAINT, images(REAL)), *system_columns(scores.systems, images)]
    save_sheet([scores.jobs[number].text for number in picked], columns, file)


def system_columns(
    systems: Sequence[tuple[str, str, str]], images: Callable[[str], list[Image.Image]]
) -> Iterator[Column]:
    """A column for each system (name, title, kind), but for experts inside the framework; ensembles are framed."""
    colours = iter((*COLOURS, *COLOURS, *COLOURS))
    for name, _, kind in systems:
        if kind != "inside":
            colour = INK if kind == "ensemble" else FAINT if kind == "base" else next(colours, FAINT)
            yield Column(name.replace("-", " "), colour, images(name), framed=kind == "ensemble")


def save_sheet(labels: Sequence[str], columns: Sequence[Column], file: Path) -> None:
    """Write a sheet of moderate width as WebP."""
    sheet = contact_sheet(list(labels), list(columns))
    size = (SHEET_WIDTH, round(sheet.height * SHEET_WIDTH / sheet.width))
    sheet.resize(size, Image.Resampling.LANCZOS).save(file, quality=82, method=6)


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` numbers, at even distances."""
    taken = min(most, count)
    return [number * count // taken for number in range(taken)]


def draw_gaps(gaps: Mapping[str, Sequence[tuple[str, Interval]]], file: Path) -> None:
    """Difference to the best expert with its interval: a panel for each score, a line for each system's title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    titles = list(dict.fromkeys(title for own in gaps.values() for title, _ in own))
    figure = Figure(figsize=(2.4 + 2.4 * len(gaps), 1.2 + 0.28 * len(titles)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(gaps), sharey=True, squeeze=False)[0]
    for axes, (score, own) in zip(panels, gaps.items(), strict=True):
        for title, gap in own:
            at = len(titles) - titles.index(title)
            axes.plot([gap.low, gap.high], [at, at], color=INK if gap.clear else FAINT, lw=1.6)
            axes.plot(gap.value, at, "o", color=INK if gap.clear else FAINT, ms=4)
        axes.axvline(0, color=FAINT, lw=0.8)
        axes.set_title(score, fontsize=9)
        axes.set_yticks(range(len(titles), 0, -1), [title.replace("*", "") for title in titles], fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
