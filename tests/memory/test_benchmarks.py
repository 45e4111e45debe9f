"""The benchmarks of memory count what their pages say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import training_memory

from diffusemble import EnsembleDenoiser
from memory import main, run
from memory_cases import a_plan
from tiny import as_expert, small_pipeline
from tiny_dit import tiny_flux_pipeline, tiny_sd3_pipeline
from tiny_flux2 import tiny_flux2_pipeline
from tiny_z_image import tiny_z_image_pipeline

PIPELINES = (small_pipeline, tiny_flux_pipeline, tiny_sd3_pipeline, tiny_flux2_pipeline, tiny_z_image_pipeline)


def table(page: Path) -> list[list[str]]:
    """The rows of numbers."""
    lines = page.read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][2:]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_plan_of_every_family_is_measured_as_it_runs(pipeline: Any) -> None:
    ensemble = EnsembleDenoiser([as_expert(pipeline(seed), f"expert {seed}") for seed in range(2)]).eval()
    plan = a_plan(ensemble, resident=1, parts="visit")
    row = run(ensemble, plan, latents=8, device="cpu", steps=2)
    assert row.copied == plan.travels
    assert 0.9 * plan.weights < row.counted <= plan.weights  # stretches of bytes are rounded up
    assert row.seconds is not None
    assert row.seconds > 0
    assert row.peak is not None  # of the process: more than the weights of so small a model
    assert row.peak > plan.weights


@pytest.mark.slow
def test_plans_of_real_size_are_counted_as_they_were_planned(tmp_path: Path) -> None:
    main(size=["sd15"], experts=[2], table=tmp_path / "page.md")
    rows = table(tmp_path / "page.md")
    assert [row[1:3] for row in rows] == [["2", "stay"], ["2", "visit"], ["1", "visit"], ["0", "visit"]]
    assert all(planned == counted for _, _, _, _, planned, counted, _ in rows)


@pytest.mark.slow
def test_within_a_budget_blocks_copy_less_than_whole_denoisers(tmp_path: Path) -> None:
    main(size=["sd15"], experts=[2], budget=["1.5GB"], table=tmp_path / "page.md")
    everything, whole, partial = table(tmp_path / "page.md")
    assert [row[0] for row in (everything, whole, partial)] == ["none", "1.5GB", "1.5GB"]
    assert (everything[4], whole[4]) == ("0 bytes", "3.43 GB")
    assert partial[4].endswith("GB")
    assert float(partial[4].split()[0]) < 2.8  # 0.74 GB lie idle under whole denoisers, but for less than a block


@pytest.mark.slow
def test_blocks_that_run_again_save_most_of_a_training_step(capsys: pytest.CaptureFixture[str]) -> None:
    training_memory.main(experts=2)
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    working = {row[0]: float(row[1].split()[0]) * (1000 if row[1].endswith("GB") else 1) for row in rows}
    assert working["blocks and aggregator run again"] < 0.2 * working["everything is kept"]
