from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from diffusemble.pictures.metadata import read_document, save_png


def test_a_png_carries_its_document_and_notes_in_any_language(tmp_path: Path) -> None:
    image = Image.radial_gradient("L").convert("RGB")
    document = "prompts:\n- ein Löwe, 虎\n" + "# long\n" * 5000
    file = save_png(image, tmp_path / "a.png", document, {"prompt": "ein Löwe", "seed": "7"})
    assert read_document(file) == document
    with Image.open(file) as stored:
        stored.load()
        assert stored.info["prompt"] == "ein Löwe"
        assert stored.info["seed"] == "7"
        assert stored.tobytes() == image.tobytes()


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_text("mine")
    with pytest.raises(FileExistsError):
        save_png(Image.new("RGB", (1, 1)), file, "", {})
    assert file.read_text() == "mine"


def test_pictures_without_a_configuration_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match=r"plain.png carries no configuration.*give the .yaml file"):
        read_document(tmp_path / "plain.png")


@pytest.mark.parametrize("cut", [0, 20, 60])
def test_damaged_pictures_are_named(tmp_path: Path, cut: int) -> None:
    whole = save_png(Image.radial_gradient("L"), tmp_path / "whole.png", "a: 1", {}).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:cut])
    with pytest.raises(ValueError, match=r"cut.png is not a readable picture"):
        read_document(tmp_path / "cut.png")
