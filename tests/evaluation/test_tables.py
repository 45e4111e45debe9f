"""One table, three ways."""

import csv
import io
from pathlib import Path

from diffusemble.evaluation.statistics import Interval
from diffusemble.evaluation.tables import Column, Table

TABLE = Table(
    "loss",
    "Loss",
    ["system", Column("loss ×1000", 1000), Column("won", 100, 0, " %"), "gap", "count"],
    [
        ["expert *a_b*", 0.0123456, None, None, 3],
        ["mean & co", -0.002, 0.25, Interval(-0.5, -1.0, -0.1), 4],
    ],
)


def test_markdown_rounds_and_marks_what_is_clear() -> None:
    lines = TABLE.markdown().splitlines()
    assert lines[0] == "| system | loss ×1000 | won | gap | count |"
    assert lines[2] == "| expert *a_b* | 12.35 | – | – | 3 |"
    assert lines[3] == "| mean & co | −2.00 | 25 % | **−0.50** [−1.00, −0.10] | 4 |"


def test_csv_keeps_every_digit_and_splits_intervals() -> None:
    rows = list(csv.reader(io.StringIO(TABLE.csv())))
    assert rows[0] == ["system", "loss ×1000", "won", "gap", "gap low", "gap high", "count"]
    assert rows[1][0] == "expert a_b"
    assert float(rows[1][1]) == 12.3456
    assert rows[1][2:6] == [""] * 4
    assert [float(cell) for cell in rows[2][3:6]] == [-0.5, -1.0, -0.1]


def test_latex_escapes_and_sets_bold() -> None:
    text = TABLE.latex()
    assert text.startswith(r"\begin{tabular}{lrrrr}")
    assert r"expert \emph{a\_b} & 12.35 & -- & -- & 3 \\" in text
    assert r"mean \& co & $-$2.00 & 25 \% & \textbf{$-$0.50} [$-$1.00, $-$0.10] & 4 \\" in text
    assert r"loss $\times$1000" in text


def test_files_of_all_three(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "tables")
    assert {file.name for file in (tmp_path / "tables").iterdir()} == {"loss.md", "loss.tex", "loss.csv"}
