from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from diffusemble.pictures.files import check_out, free_stem, read_picture, slug


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


def test_where_pictures_cannot_go_is_said_beforehand(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.touch()
    for out, message in (
        (file, r"out is a folder or NAME\.png; .*a\.safetensors is no folder\. Give another name"),
        (file / "x", r"; .*a\.safetensors/x cannot be made, for .*a\.safetensors is no folder"),
        (file / "x.png", r"; .*a\.safetensors is no folder"),
        ("/proc/x", r"nothing can be written to /\S* \(.*\)\. Give another folder"),  # whoever runs the tests
    ):
        with pytest.raises(ValueError, match=message):
            check_out(out)
    for out in (tmp_path, tmp_path / "new/folder", tmp_path / "x.png", tmp_path / "new/x.png"):
        check_out(out)
    assert [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_picture_that_cannot_be_read_is_named_with_its_key(tmp_path: Path) -> None:
    Image.effect_noise((300, 300), 50).save(tmp_path / "whole.png")
    assert read_picture(tmp_path / "whole.png", "image").mode == "RGB"
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[:300])
    second = data.rindex(b"IDAT")
    (tmp_path / "broken.png").write_bytes(data[:second] + bytes(4) + data[second + 4 :])
    for name, message in (
        ("cut.png", r"image: the picture .*cut\.png cannot be read \(.*truncated.*\)\. Copy or download it again"),
        ("broken.png", r"image: the picture .*broken\.png cannot be read \(.*broken PNG"),
        ("hole.png", r"image: there is no file .*hole\.png .*\(did you mean 'whole\.png'\?\)"),
        ("", "image: this is no picture: "),
    ):
        with pytest.raises(ValueError, match=message):
            read_picture(tmp_path / name, "image")
