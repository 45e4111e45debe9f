"""Tables of words, numbers and intervals, as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusemble.evaluation.statistics import Interval

Cell = str | float | int | Interval | None


@dataclass(frozen=True)
class Column:
    """Title of a column, and how its numbers are shown: times ``scale``, with ``digits`` and a ``unit`` behind them."""

    title: str
    scale: float = 1.0
    digits: int = 2
    unit: str = ""


Head = Sequence[str | Column]
Body = Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Table:
    """Rows of words and numbers.

    Attributes:
        name: of its files.
        caption: what it shows and how to read it.
        head: a title or ``Column`` for each column.
        rows: cells; ``None`` is a dash.
        digits: of columns that are given by their title alone.
    """

    name: str
    caption: str
    head: Head
    rows: Body
    digits: int = 2

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns with their formats."""
        return tuple(Column(one, digits=self.digits) if isinstance(one, str) else one for one in self.head)

    def markdown(self) -> str:
        """A Markdown table; intervals that exclude zero are bold."""
        columns = self.columns
        lines = [[column.title for column in columns], ["---", *["---:"] * (len(columns) - 1)]]
        lines += [[shown(cell, column) for cell, column in zip(row, columns, strict=True)] for row in self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def latex(self) -> str:
        """A ``tabular`` with the rules of booktabs."""
        columns = self.columns
        body = [
            " & ".join(_tex(shown(cell, column)) for cell, column in zip(row, columns, strict=True))
            for row in self.rows
        ]
        head = " & ".join(_tex(column.title) for column in columns)
        lines = [rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", r"\toprule", rf"{head} \\", r"\midrule"]
        return "\n".join([*lines, *(rf"{line} \\" for line in body), r"\bottomrule", r"\end{tabular}", ""])

    def csv(self) -> str:
        """Comma-separated values, unrounded; an interval takes three columns."""
        wide = {at for row in self.rows for at, cell in enumerate(row) if isinstance(cell, Interval)}
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        titles = [column.title.replace("*", "") for column in self.columns]
        ends = [("", " low", " high") if at in wide else ("",) for at in range(len(titles))]
        writer.writerow([f"{title}{end}" for title, own in zip(titles, ends, strict=True) for end in own])
        for row in self.rows:
            cells = [
                value
                for at, (cell, column) in enumerate(zip(row, self.columns, strict=True))
                for value in _plain(cell, column.scale, at in wide)
            ]
            writer.writerow(cells)
        return out.getvalue()

    def save(self, folder: Path) -> None:
        """Write ``<name>.md``, ``<name>.tex`` and ``<name>.csv``."""
        folder.mkdir(parents=True, exist_ok=True)
        for end, text in ((".md", self.markdown() + "\n"), (".tex", self.latex()), (".csv", self.csv())):
            (folder / f"{self.name}{end}").write_text(text, encoding="utf-8")


def shown(cell: Cell, column: Column) -> str:
    """A cell as the page shows it."""
    if cell is None:
        return "–"
    if isinstance(cell, Interval):
        numbers = (cell.value, cell.low, cell.high)
        value, low, high = (f"{column.scale * x:+.{column.digits}f}".replace("-", "−") for x in numbers)
        return f"**{value}** [{low}, {high}]" if cell.clear else f"{value} [{low}, {high}]"
    if isinstance(cell, float):
        return f"{column.scale * cell:.{column.digits}f}{column.unit}".replace("-", "−")
    return str(cell)


def _plain(cell: Cell, scale: float, wide: bool) -> Iterable[str | float | int]:
    if isinstance(cell, Interval):
        return [scale * cell.value, scale * cell.low, scale * cell.high]
    value = "" if cell is None else scale * cell if isinstance(cell, float) else cell
    return [value.replace("*", "") if isinstance(value, str) else value, *([""] * 2 if wide else [])]


def _tex(text: str) -> str:
    signs = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    escaped = re.sub(r"[\\~^&%$#_{}]", lambda found: signs.get(found[0], "\\" + found[0]), text)
    escaped = re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", escaped)
    escaped = re.sub(r"\*(.+?)\*", r"\\emph{\1}", escaped)
    return escaped.replace("−", "$-$").replace("–", "--").replace("×", r"$\times$")
