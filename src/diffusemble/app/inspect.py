"""``diffusemble inspect``: what files and folders are."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusemble.app.terminal import out, progress_bar

if TYPE_CHECKING:
    from rich.console import RenderableType

    from diffusemble.experts.inspection.report import Part, Report

_LONG = 100  # characters of a text that a table shows
_TRAINING = "ss_"  # how kohya's programs mark what they write


def inspect(
    paths: Annotated[list[str], typer.Argument(metavar="FILE-OR-FOLDER...", help="Any files and folders.")],
    hashes: Annotated[bool, typer.Option("--hash/--no-hash", help="Read files whole for their SHA-256.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="For machines; nothing is left out.")] = False,
) -> None:
    """Say what files and folders are, without loading them."""
    with progress_bar("reading"):
        from diffusemble.experts.inspection.folders import inspect as look

        found = [report for path in paths for report in look(path, hashes)]
    if as_json:
        typer.echo(json.dumps([_plain(report) for report in found], indent=2, ensure_ascii=False))
        return
    for report in found:
        out().print(_shown(report))


def _plain(report: Report) -> dict[str, Any]:
    return {**asdict(report), "autov2": report.autov2, "parameters": report.parameters}


def _shown(report: Report) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = Table.grid(padding=(0, 2))
    rows.add_column()
    rows.add_column(overflow="fold")
    for name, text in _rows(report):
        rows.add_row(Text(name, style="dim"), Text(text, style="yellow" if name == "problem" else ""))
    return Group(Text(report.path, style="bold"), rows, "")


def _rows(report: Report) -> list[tuple[str, str]]:
    from diffusemble.app.tables import count

    shown = [("what", report.what), ("problem", report.problem), ("layout", report.layout)]
    shown += [("predicts", report.prediction), *(("part", _part(part)) for part in report.parts)]
    if len(report.parts) > 1:
        shown.append(("parameters", count(report.parameters)))
    shown += [("size", None if report.size is None else f"{report.size:,} bytes")]
    shown += [("SHA-256", report.sha256), ("AutoV2", report.autov2)]
    shown += [("SHA-256", f"{checksum}  {file}") for file, checksum in report.files.items()]
    shown += list(report.notes.items())
    kept = {key: text for key, text in report.metadata.items() if not key.startswith(_TRAINING)}
    shown += [(f"[{key}]", _short(text)) for key, text in kept.items()]
    if len(kept) < len(report.metadata):
        shown.append((f"[{_TRAINING}...]", f"{len(report.metadata) - len(kept)} settings of its training (--json)"))
    if report.recipe is not None:
        shown.append(("recipe", json.dumps(report.recipe.get("recipe", report.recipe), ensure_ascii=False)))
        shown += [("input", _input(one)) for one in report.recipe.get("inputs", ())]
    return [(name, text) for name, text in shown if text]


def _part(part: Part) -> str:
    from diffusemble.app.tables import count

    kinds = sorted(part.dtypes, key=lambda dtype: -part.dtypes[dtype])
    main = [kind for kind in kinds if part.dtypes[kind] * 1000 > part.parameters] or kinds
    return f"{part.name}: {count(part.parameters)} in {' and '.join(main)}"


def _input(one: dict[str, Any]) -> str:
    hashes = ", ".join(f"{name} {checksum[:10]}" for name, checksum in one.get("sha256", {}).items())
    return f"{one.get('role')} {one.get('source')} ({hashes})"


def _short(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[:_LONG]}... ({len(text):,} characters)"
