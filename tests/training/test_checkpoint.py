from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusemble.training.checkpoint import load_checkpoint, refuse_another_run, save_checkpoint
from diffusemble.training.files import StorageError, replace_file

IDENTITY: dict[str, Any] = {"rate": 0.1, "data": {"path": "here"}}


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, IDENTITY) is None
    save_checkpoint(tmp_path, {"identity": IDENTITY, "step": 3, "x": torch.arange(3)})
    state = load_checkpoint(tmp_path, IDENTITY)
    assert state is not None
    assert state["step"] == 3
    assert state["x"].tolist() == [0, 1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({**IDENTITY, "rate": 0.2}, "was started with another rate: 0.1, now 0.2"),
        ({"rate": 0.1}, r"was started with another data: \{'path': 'here'\}, now None"),
        ({**IDENTITY, "data": {"path": "here", "root": "there"}}, "another data.root: None, now 'there'"),
        ({**IDENTITY, "new": 1}, "was started with another new: None, now 1"),
    ],
)
def test_another_run_is_not_gone_on_with(tmp_path: Path, now: dict[str, Any], message: str) -> None:
    save_checkpoint(tmp_path, {"identity": IDENTITY})
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path, now)


def test_what_is_not_known_yet_is_not_compared(tmp_path: Path) -> None:
    refuse_another_run(tmp_path, {"rate": 0.2})
    save_checkpoint(tmp_path, {"identity": IDENTITY})
    refuse_another_run(tmp_path, {"rate": 0.1})
    with pytest.raises(ValueError, match=r"was started with another rate: 0.1, now 0.2"):
        refuse_another_run(tmp_path, {"rate": 0.2})


@pytest.mark.parametrize("damage", [b"", b"rubbish", None])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: bytes | None) -> None:
    save_checkpoint(tmp_path, {"identity": IDENTITY, "x": torch.zeros(1000)})
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:-200] if damage is None else damage)
    with pytest.raises(ValueError, match=r"checkpoint.pt is damaged .* Remove it to start this run again"):
        load_checkpoint(tmp_path, IDENTITY)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "file"
    replace_file(file, b"old")
    (tmp_path / "folder" / f".file.{os.getpid()}.partial").mkdir()  # so that the temporary file cannot be made
    with pytest.raises(StorageError, match=r"Could not write .*folder/file \(0.0 MiB\): .* Free some space"):
        replace_file(file, b"new")
    assert file.read_bytes() == b"old"
