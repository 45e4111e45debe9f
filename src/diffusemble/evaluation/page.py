"""A page of text and tables, written as Markdown, with every table beside it as Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusemble.config.places import check_file, check_folder
from diffusemble.evaluation.config import BenchConfig, SystemConfig
from diffusemble.evaluation.statistics import Interval
from diffusemble.evaluation.tables import Column, Table, shown

Section = str | Table
TABLES = "tables"
_HIDDEN = {"report", "out", "data", "threads", "systems", "device", "metrics", "prompts", "weights"}


def check_page(page: Path) -> None:
    """Make sure, before hours of measuring, that a page can be written.

    Raises:
        ValueError: it cannot; see ``check_file``.
    """
    check_file(page, "report")
    if not page.suffix:
        raise ValueError(f"report is a file with an ending, such as {page}.md; {page} is what its folder is called.")
    check_folder(page.with_suffix(""), "report", "a page with a folder of its name beside it")


def write_page(page: Path, sections: Iterable[Section]) -> Path:
    """Write the page, and its tables into ``<page>/tables``; returns the page."""
    texts = []
    for section in sections:
        if isinstance(section, Table):
            section.save(page.with_suffix("") / TABLES)
            texts.append(section.markdown())
        else:
            texts.append(section)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return page


def plain(interval: Interval, scale: float = 1.0, digits: int = 2) -> str:
    """An interval in running text."""
    return shown(interval, Column("", scale, digits))


def settings_list(config: BenchConfig, notes: Mapping[str, Any]) -> str:
    """Machine, versions and settings, as a list."""
    lines = [f"- {key}: {_flat(value)}" for key, value in notes.items()]
    chosen = config.model_dump(mode="json", exclude=_HIDDEN)
    lines.append("- settings: " + ", ".join(f"{key} {_flat(value)}" for key, value in chosen.items() if value != ""))
    if config.systems:
        lines.append("- systems: " + ", ".join(_named(system) for system in config.systems))
    lines.append("- scores of every picture are kept under `out`; `diffusemble report` redraws this page from them")
    return "\n".join(lines)


def _named(system: SystemConfig) -> str:
    given = system.model_dump(mode="json", exclude_none=True, exclude={"title"})
    return system.name or " ".join(f"{key} {_flat(value)}" for key, value in given.items())


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(inner)}" for key, inner in value.items())
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
