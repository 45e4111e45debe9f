"""Results as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from diffusemble.description import Description


def description_table(found: Description) -> RenderableType:
    """Experts, points, and what a step costs."""
    unlike = len({expert.flops for expert in found.experts}) > 1
    more = [">one step"] if unlike else []
    experts = _table("expert", "source", "denoiser", ">parameters", ">text encoders", *more)
    for expert in found.experts:
        sizes = count(expert.parameters), count(expert.text_parameters) if expert.text_parameters else "-"
        own = [operations(expert.flops)] if unlike else []
        experts.add_row(Text(expert.name), Text(expert.source or "-"), expert.kind, *sizes, *own)
    points = _table(">", "point", ">channels", ">grid", "aggregated")
    for number, point in enumerate(found.points):
        grid = f"{point.grid[0]} x {point.grid[1]}"
        points.add_row(str(number), point.name, str(point.channels), grid, "yes" if point.aggregated else "no")
    channels, height, width = found.latents
    costs = Table.grid(padding=(0, 2))
    costs.add_row("aggregator", Text(found.aggregator))
    costs.add_row("its parameters", count(found.aggregator_parameters))
    costs.add_row("latents", f"{channels} x {height} x {width}")
    whom = "the first expert" if unlike else "one expert"
    costs.add_row(f"one step, {whom}", operations(found.expert_flops))
    costs.add_row("one step, ensemble", f"{operations(found.ensemble_flops)} = {found.ratio:.2f} x {whom}")
    note = Text("Operations of one forward pass; guidance doubles them.", style="dim")
    return Group(experts, points, costs, "", note)


def zoo_table(groups: dict[str, tuple[str, ...]], names: tuple[str, ...], trained: set[str]) -> RenderableType:
    """Every model of the zoo and the groups that are made to draw together."""
    table = _table("source", "what")
    for name in names:
        member = [group for group, members in groups.items() if name in members]
        table.add_row(f"zoo:{name}", f"expert of {', '.join(member)}" if member else "base")
    for group, members in groups.items():
        how = "with a trained aggregator" if group in trained else "without a trained aggregator"
        table.add_row(f"zoo:{group}", f"{', '.join(members)} together, {how}")
    return table


def count(number: int) -> str:
    """Parameters, readable: 859.5 M."""
    return _scaled(number, "")


def operations(number: int) -> str:
    """Floating-point operations, readable: 803.3 GFLOP."""
    return _scaled(number, "FLOP")


def _scaled(number: int, unit: str) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G" if unit else "B"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.4g} {prefix}{unit}"
    return f"{number} {unit}".strip()


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        right = name.startswith(">")
        table.add_column(name.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    return table
