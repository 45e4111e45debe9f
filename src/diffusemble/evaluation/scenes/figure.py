"""All systems' measures in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusemble.evaluation.scenes.bench import SceneScores
from diffusemble.evaluation.studies.plots import blank, finish
from diffusemble.pictures.text import COLOURS, INK


def measures_figure(found: Mapping[str, SceneScores], measures: Sequence[str]) -> Any:
    """A row for every system, a dot for every measure; the first measure is the one to look at."""
    figure, ((axes,),) = blank(8, 1.2 + 0.36 * len(found))
    titles = [scores.title for scores in found.values()][::-1]
    for number, measure in enumerate(measures):
        values = [100 * scores.mean(measure) for scores in found.values()][::-1]
        colour, size = (INK, 8) if number == 0 else (COLOURS[number % len(COLOURS)], 5)
        axes.plot(values, range(len(values)), "o", color=colour, ms=size, label=measure)
    axes.set_yticks(range(len(titles)), titles, fontsize=8)
    finish(axes, ("per cent of held-out scenes", ""))
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
