"""The benchmarks of memory count what their pages say."""

from __future__ import annotations

from pathlib import Path

import pytest
import training_memory

from memory import main

pytestmark = pytest.mark.slow


def table(page: Path) -> list[list[str]]:
    """The rows of numbers."""
    lines = page.read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][2:]


def test_plans_of_real_size_are_counted_as_they_were_planned(tmp_path: Path) -> None:
    main(size=["sd15"], experts=[2], table=tmp_path / "page.md")
    rows = table(tmp_path / "page.md")
    assert [row[1:3] for row in rows] == [["2", "stay"], ["2", "visit"], ["1", "visit"], ["0", "visit"]]
    assert all(planned == counted for _, _, _, _, planned, counted, _ in rows)


def test_within_a_budget_blocks_copy_less_than_whole_denoisers(tmp_path: Path) -> None:
    main(size=["sd15"], experts=[2], budget=["1.5GB"], table=tmp_path / "page.md")
    everything, whole, partial = table(tmp_path / "page.md")
    assert [row[0] for row in (everything, whole, partial)] == ["none", "1.5GB", "1.5GB"]
    assert (everything[4], whole[4]) == ("0 bytes", "3.43 GB")
    assert partial[4].endswith("GB")
    assert float(partial[4].split()[0]) < 2.8  # 0.74 GB lie idle under whole denoisers, but for less than a block


def test_blocks_that_run_again_save_most_of_a_training_step(capsys: pytest.CaptureFixture[str]) -> None:
    training_memory.main(experts=2)
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    working = {row[0]: float(row[1].split()[0]) * (1000 if row[1].endswith("GB") else 1) for row in rows}
    assert working["blocks and aggregator run again"] < 0.2 * working["everything is kept"]
