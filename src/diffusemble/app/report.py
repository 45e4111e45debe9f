"""``diffusemble report``: pages from stored scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffusemble.app.terminal import out

Folder = Annotated[Path, typer.Argument(help="Where `diffusemble evaluate` kept its scores (its out).")]


def report(
    folder: Folder = Path("build/evaluation"),
    page: Annotated[Path | None, typer.Option("--out", "-o", help="The page to write; the evaluation's own.")] = None,
    systems: Annotated[
        list[str] | None, typer.Option("--system", "-s", help="A system to show; once for each. All by default.")
    ] = None,
) -> None:
    """Redraw every table (Markdown, LaTeX, CSV) and figure of an evaluation; no model is loaded."""
    from diffusemble.evaluation.runs import redraw

    out().print(f"results  {redraw(folder, page, tuple(systems or ()))}", markup=False)
