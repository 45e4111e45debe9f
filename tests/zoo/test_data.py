import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from recipes.zoo.data import (
    STYLES,
    align,
    clean_code,
    code_point,
    draw,
    read_concepts,
    read_package,
    rows,
    split_of,
    vector_icons,
)

SQUARE = '<path d="M0 0h10v10H0z" fill="#f00"/>'


@pytest.mark.parametrize(
    ("emoji", "code"), [("☀️", "2600"), ("🍓", "1f353"), ("👨‍🚀", "1f468-200d-1f680"), ("#️⃣", "23-20e3")]
)
def test_code_points_have_one_spelling(emoji: str, code: str) -> None:
    assert code_point(emoji) == code == clean_code(f"00{code.upper()}-FE0F")


def test_alignment_keeps_what_every_style_has_and_falls_back_on_names() -> None:
    styles = {"a": {"1f353": "a1", "1f405": "a2"}, "b": {"strawberry": "b1", "1f405": "b2"}, "c": {"1f353": "c1"}}
    names = {"1f353": "strawberry", "1f405": "tiger", "1f996": "t-rex"}
    assert align(styles, names) == {"1f353": {"a": "a1", "b": "b1", "c": "c1"}}


def test_aliases_and_boxes_of_vector_icons() -> None:
    pack = {
        "width": 10,
        "height": 10,
        "icons": {"box": {"body": SQUARE}, "wide": {"body": SQUARE, "width": 20}},
        "aliases": {"crate": {"parent": "box"}, "turned": {"parent": "box", "rotate": 1}},
    }
    chars = {"1f4e6": "crate", "26f5": "wide"}
    icons = vector_icons({"icons.json": json.dumps(pack).encode(), "chars.json": json.dumps(chars).encode()})
    assert icons["1f4e6"] == icons["box"]
    assert "turned" not in icons
    assert 'viewBox="0.0 -5.0 20 20"' in icons["26f5"]


def test_pictures_are_drawn_on_white_and_keep_their_colours() -> None:
    icon = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-5 -5 20 20">{SQUARE}</svg>'
    image = Image.open(io.BytesIO(draw(icon)))
    assert image.size == (64, 64)
    assert image.getpixel((2, 2)) == (255, 255, 255)
    assert image.getpixel((32, 32)) == (255, 0, 0)


def test_pixels_are_laid_on_white_too() -> None:
    source = io.BytesIO()
    Image.new("RGBA", (256, 256), (0, 0, 255, 0)).save(source, "PNG")
    assert Image.open(io.BytesIO(draw(source.getvalue()))).getpixel((9, 9)) == (255, 255, 255)


def test_an_archive_is_read_without_its_first_folder(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        entry = tarfile.TarInfo("package/dist/a.json")
        entry.size = 2
        archive.addfile(entry, io.BytesIO(b"{}"))
    assert read_package(tmp_path / "a.tgz") == {"dist/a.json": b"{}"}


def test_the_split_is_fixed_disjoint_and_about_a_tenth() -> None:
    concepts = read_concepts()
    lines = list(rows(concepts, {c.code for c in concepts}))
    splits = {(line["concept"], line["style"]): line["split"] for line in lines}
    assert splits == {key: split_of(*key) for key in splits}
    unseen = {concept for (concept, _), split in splits.items() if split == "concept"}
    for concept in unseen:
        assert {splits[concept, style] for style in STYLES} == {"concept"}
    shares = Counter(splits.values())
    assert 0.05 < shares["concept"] / len(splits) < 0.15
    assert 0.05 < shares["pair"] / (shares["pair"] + shares["train"]) < 0.15
    assert split_of("strawberry", "noto") == "train"  # golden: a change would mix training and held-out pictures
    assert split_of("tulip", "noto") == "concept"


def test_every_style_of_a_known_concept_is_held_out_somewhere() -> None:
    concepts = read_concepts()
    held = Counter(line["style"] for line in rows(concepts, {c.code for c in concepts}) if line["split"] == "pair")
    assert set(held) == set(STYLES)


def test_a_concept_that_some_style_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="'grinning face' \\(1f600\\) does not"):
        list(rows(read_concepts(), set()))


def test_a_repeated_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("a: {🍓: berry}\nb: {🫐: berry}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"twice\.yaml repeats berry"):
        read_concepts(tmp_path / "twice.yaml")
