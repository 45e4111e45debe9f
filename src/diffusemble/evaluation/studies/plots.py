"""Figures that several studies share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusemble.pictures.text import COLOURS, INK

Array = NDArray[Any]


def blank(width: float = 8, height: float = 4.2, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """A figure that belongs to no window, and its axes ``[rows columns]``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def lines(
    series: Mapping[str, Sequence[float]],
    at: Sequence[float],
    axes_titles: tuple[str, str],
    main: str = "",
    dashed: Mapping[str, Sequence[float]] | None = None,
) -> Any:
    """One line per name over ``at``; the line called ``main`` is the one to look at.

    Lines of ``dashed`` take the colours of ``series`` once more, in order.
    """
    figure, ((axes,),) = blank()
    for names, style in ((series, "-"), (dashed or {}, "--")):
        _draw(axes, names, at, main, style)
    if all(float(place).is_integer() for place in at):  # numbers of experts, copies, steps: nothing lies between them
        axes.xaxis.get_major_locator().set_params(integer=True)
    finish(axes, axes_titles)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _draw(axes: Any, series: Mapping[str, Sequence[float]], at: Sequence[float], main: str, style: str) -> None:
    colours = iter(COLOURS * (1 + len(series) // len(COLOURS)))
    for name, values in series.items():
        bold = name == main
        colour, width = (INK, 2.4) if bold else (next(colours), 1.4)
        axes.plot(at, values, style, color=colour, lw=width, marker="o", ms=3, label=name.replace("*", ""))


def whiskers(gaps: Mapping[str, tuple[float, float, float]], title: str) -> Any:
    """Value, low and high of every name as a dot with its interval, around a line at zero."""
    figure, ((axes,),) = blank(8, 0.8 + 0.36 * len(gaps))
    for place, (value, low, high) in enumerate(reversed(list(gaps.values()))):
        clear = low > 0 or high < 0
        axes.plot([low, high], [place, place], color=INK if clear else "#9aa1ab", lw=2)
        axes.plot([value], [place], "o", color=INK if clear else "#9aa1ab", ms=6)
    axes.axvline(0, color=COLOURS[4], lw=1)
    axes.set_yticks(range(len(gaps)), [name.replace("*", "") for name in reversed(list(gaps))], fontsize=8)
    finish(axes, (title, ""))
    return figure


def scatter(points: Mapping[str, tuple[float, float]], axes_titles: tuple[str, str]) -> Any:
    """A named dot for each (x, y)."""
    figure, ((axes,),) = blank(7, 4.2)
    for number, (name, (x, y)) in enumerate(points.items()):
        axes.plot([x], [y], "o", color=COLOURS[number % len(COLOURS)], ms=7)
        axes.annotate(name.replace("*", ""), (x, y), xytext=(6, 5), textcoords="offset points", fontsize=8)
    axes.margins(0.15)
    finish(axes, axes_titles)
    return figure


def heat(
    panels: Mapping[str, Array], axes_titles: tuple[str, str], span: tuple[float, float], ticks: Sequence[Any] = ()
) -> Any:
    """A map ``[rows columns]`` for each name, side by side, on one scale; ``ticks`` name the columns."""
    figure, (row,) = blank(1.2 + 3.1 * len(panels), 3.4, columns=len(panels))
    for axes, (name, panel) in zip(row, panels.items(), strict=True):
        image = axes.imshow(np.asarray(panel), cmap="viridis", vmin=span[0], vmax=span[1], aspect="auto")
        axes.set_title(name, fontsize=9)
        if ticks:
            axes.set_xticks(range(len(ticks)), ticks, fontsize=6, rotation=90)
        axes.set_xlabel(axes_titles[0], fontsize=8)
    row[0].set_ylabel(axes_titles[1], fontsize=8)
    figure.colorbar(image, ax=list(row), shrink=0.8)
    return figure


def finish(axes: Any, titles: tuple[str, str]) -> None:
    """Titles, a faint grid, no box."""
    axes.set_xlabel(titles[0])
    axes.set_ylabel(titles[1])
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
