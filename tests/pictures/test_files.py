from __future__ import annotations

from pathlib import Path

import pytest

from diffusemble.pictures.files import free_stem, slug


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("A tiger, noto style!", "a-tiger-noto-style"),
        ("Ein Löwe / 虎", "ein-löwe-虎"),
        ("../../etc", "etc"),
        ("", "picture"),
        ("word " * 30, "word-word-word-word-word-word-word-word"),
    ],
)
def test_slugs(title: str, name: str) -> None:
    assert slug(title) == name


def test_a_folder_is_made_and_counts_its_runs(tmp_path: Path) -> None:
    out = tmp_path / "new/folder"
    first = free_stem(out, "a cat", [".png", ".yaml"])
    assert first == out / "0001-a-cat"
    (out / "0001-a-cat.png").touch()
    (out / "0041-a-dog.yaml").touch()
    (out / "notes.txt").touch()
    assert free_stem(out, "a cat", [".png"]) == out / "0042-a-cat"


def test_a_given_name_is_kept_until_any_of_its_files_exists(tmp_path: Path) -> None:
    wanted = tmp_path / "cat.png"
    assert free_stem(wanted, "ignored", [".png", ".yaml"]) == tmp_path / "cat"
    (tmp_path / "cat.yaml").touch()
    assert free_stem(wanted, "ignored", [".png", ".yaml"]) == tmp_path / "cat-2"
    (tmp_path / "cat-2.png").touch()
    assert free_stem(wanted, "ignored", [".png", ".yaml"]) == tmp_path / "cat-3"
    assert free_stem(wanted, "ignored", ["-attention.png"]) == tmp_path / "cat"
