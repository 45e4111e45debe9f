"""The benchmarks of memory count what their pages say."""

from __future__ import annotations

from pathlib import Path

import pytest
import training_memory

from memory import main

pytestmark = pytest.mark.slow


def test_plans_of_real_size_are_counted_as_they_were_planned(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    main(size=["sd15"], experts=[2], table=page)
    lines = [line for line in page.read_text().splitlines() if line.startswith("| 2")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[1:3] for row in cells] == [["2", "stay"], ["2", "visit"], ["1", "visit"], ["0", "visit"]]
    assert all(planned == counted for _, _, _, planned, counted, _ in cells)


def test_blocks_that_run_again_save_most_of_a_training_step(capsys: pytest.CaptureFixture[str]) -> None:
    training_memory.main(experts=2)
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    working = {row[0]: float(row[1].split()[0]) * (1000 if row[1].endswith("GB") else 1) for row in rows}
    assert working["blocks and aggregator run again"] < 0.2 * working["everything is kept"]
