from __future__ import annotations

from pathlib import Path

import pytest

from diffusemble.training.files import StorageError
from diffusemble.training.log import RunLog, read_log


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    log.write(1, loss=0.5)
    log.write(1, held_out=0.25, buckets=[0.2, 0.3])
    assert read_log(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 1, "held_out": 0.25, "buckets": [0.2, 0.3]}]


def test_rows_beyond_the_checkpoint_and_a_cut_line_are_removed(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    for step in range(1, 6):
        log.write(step, loss=1.0 / step)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    RunLog(tmp_path, 3).write(4, loss=9.0)
    assert [(row["step"], row["loss"]) for row in read_log(tmp_path)] == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 9.0)]


def test_a_run_that_starts_again_starts_its_log_again(tmp_path: Path) -> None:
    RunLog(tmp_path, 0).write(0, held_out=1.0)
    RunLog(tmp_path, 0).write(0, held_out=2.0)
    assert [row["held_out"] for row in read_log(tmp_path)] == [2.0]


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"Could not write .*log.jsonl at step 7: No space left on device"):
        RunLog(tmp_path, 0).write(7, loss=1.0)
