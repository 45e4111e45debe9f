"""Kept scores: computed once, and never mixed between runs."""

from pathlib import Path

import numpy as np
import pytest

from diffusemble.evaluation.pictures import choose, read_rows, seed_of
from diffusemble.evaluation.store import Store


def test_a_piece_is_made_once_and_survives_a_new_start(tmp_path: Path):
    calls = []

    def make() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"x": np.arange(6).reshape(2, 3)}

    first = Store(tmp_path / "run", {"steps": 20}, {}).get("losses/a", make)
    again = Store(tmp_path / "run", {"steps": 20}, {"versions": "newer"}).get("losses/a", make)
    assert len(calls) == 1
    np.testing.assert_array_equal(first["x"], again["x"])


def test_a_failed_piece_leaves_nothing(tmp_path: Path):
    store = Store(tmp_path, {}, {})

    def fail() -> dict[str, np.ndarray]:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        store.get("losses/a", fail)
    assert store.get("losses/a", lambda: {"x": np.ones(1)})["x"] == 1


def test_scores_of_another_run_are_refused(tmp_path: Path):
    Store(tmp_path, {"steps": 20, "times": (1, 2)}, {})
    Store(tmp_path, {"steps": 20, "times": (1, 2)}, {})
    with pytest.raises(ValueError, match=r"another run: its steps was 20, now 25.*another folder as out"):
        Store(tmp_path, {"steps": 25, "times": (1, 2)}, {})


def test_pictures_that_are_missing_or_unmarked_are_explained(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no .*metadata.jsonl. Make the zoo's with"):
        read_rows(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}\n')
    with pytest.raises(ValueError, match=r"line 1: the column 'concept' is missing"):
        read_rows(tmp_path)
    line = '{"file_name": "a.png", "text": "a", "concept": "a", "style": "s", "topic": "t", "split": "train"}\n'
    (tmp_path / "metadata.jsonl").write_text(line)
    rows = read_rows(tmp_path)
    assert choose(rows, "train", 9, tmp_path) == rows
    with pytest.raises(ValueError, match=r"no pictures of the split 'pair'; it has train.*Mark held-out"):
        choose(rows, "pair", None, tmp_path)


def test_seeds_depend_on_every_part():
    assert seed_of(0, "a.png", 10) == seed_of(0, "a.png", 10)
    assert (
        len({seed_of(0, "a.png", 10), seed_of(1, "a.png", 10), seed_of(0, "b.png", 10), seed_of(0, "a.png", 11)}) == 4
    )
    assert 0 <= seed_of("x") < 2**63
