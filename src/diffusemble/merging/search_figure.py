"""A picture of a search: the score of every trial, and the shares it ended with."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import isfinite
from pathlib import Path
from typing import Any

from diffusemble.merging.coordinates import Shares
from diffusemble.merging.trials import Trial
from diffusemble.pictures.text import COLOURS, FAINT, INK


def draw_search(experts: Sequence[str], shares: Shares, trials: Sequence[Trial], file: Path) -> None:
    """Above, the score of every trial and the best so far; below, each expert's share of every slot.

    Args:
        experts: names, in the order of the shares.
        shares: what the search ended with.
        trials: in order.
        file: where the picture goes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(8.0, 2 + 0.3 * len(shares)), 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, height_ratios=(3, 2))
    _scores(above, trials)
    _bars(below, experts, shares)
    figure.savefig(file, dpi=110)


def _scores(axes: Any, trials: Sequence[Trial]) -> None:
    best = list(accumulate((trial.score for trial in trials), max))
    numbers = range(1, len(trials) + 1)
    shown = [(number, trial.score) for number, trial in zip(numbers, trials, strict=True) if isfinite(trial.score)]
    axes.plot(*zip(*shown, strict=True), "o", color=FAINT, ms=3, alpha=0.6, label="trial")
    axes.step(numbers, best, where="post", color=INK, lw=2, label="best so far")
    last: tuple[str, ...] = ()
    for number, trial in zip(numbers, trials, strict=True):
        slots = () if trial.step.axis is None else trial.step.axis.slots
        if slots != last:
            last = slots
            axes.axvline(number - 0.5, color=FAINT, lw=0.5, alpha=0.4)
            top = axes.get_xaxis_transform()
            axes.text(number, 1.01, ", ".join(slots), transform=top, rotation=90, fontsize=7, color=FAINT, va="bottom")
    axes.set_xlabel("trial")
    axes.set_ylabel("score")
    axes.set_xlim(0.5, len(trials) + 0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _bars(axes: Any, experts: Sequence[str], shares: Shares) -> None:
    bottom = [0.0] * len(shares)
    for number, name in enumerate(experts):
        heights = [own[number] for own in shares.values()]
        axes.bar(list(shares), heights, bottom=bottom, width=0.85, color=COLOURS[number % len(COLOURS)], label=name)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.set_ylabel("share")
    axes.set_ylim(0, 1)
    axes.set_xlim(-0.6, len(shares) - 0.4)
    axes.tick_params(axis="x", rotation=90, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=1, loc="center left", bbox_to_anchor=(1, 0.5))
