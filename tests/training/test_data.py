from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from diffusemble.training.config import DataConfig
from diffusemble.training.data import open_source


def pairs(path: Path | str, kind: str, **options: Any) -> list[tuple[str, str, bytes]]:
    source = open_source(DataConfig(path=str(path), kind=kind, **options))
    return [(Path(picture.name).name, picture.caption, picture.read()) for picture in source.pictures()]


def write_files(folder: Path) -> None:
    (folder / "sub").mkdir()
    for number, name in enumerate(["a.png", "sub/b.png", "c.png"]):
        (folder / name).write_bytes(bytes([number]))


def write_tar(file: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(file, "w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


ROWS = [
    {"file_name": "a.png", "text": "first", "split": "train"},
    {"file_name": "sub/b.png", "text": "sécond", "split": "held"},
    {"file_name": "c.png", "text": "third", "split": "train"},
]


def test_an_imagefolder_gives_files_with_captions_in_order(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert pairs(tmp_path, "imagefolder") == [
        ("a.png", "first", b"\0"),
        ("b.png", "sécond", b"\1"),
        ("c.png", "third", b"\2"),
    ]
    chosen = pairs(tmp_path, "imagefolder", where={"split": "train"})
    assert [name for name, _, _ in chosen] == ["a.png", "c.png"]
    assert len(pairs(tmp_path, "imagefolder", where={"split": ["held", "train"]})) == 3


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_captions_keep_their_own_ends_of_lines(tmp_path: Path, kind: str) -> None:
    """In a quoted field of a .csv file, and those that are not the end of a line of JSON."""
    caption = "one\ntwo" if kind == "csv" else "one\u2028two\x85three"
    table = tmp_path / f"list.{kind}"
    entry = json.dumps({"file_name": "a.png", "text": caption}, ensure_ascii=False)
    text = f'file_name,text\na.png,"{caption}"\n' if kind == "csv" else f"{entry}\n"
    table.write_text(text, encoding="utf-8")
    (picture,) = open_source(DataConfig(path=str(table), kind="list")).pictures()
    assert picture.caption == caption


@pytest.mark.parametrize("style", ["csv", "json", "lines"])
def test_a_list_of_files_is_read_from_csv_json_and_json_lines(tmp_path: Path, style: str) -> None:
    write_files(tmp_path)
    rows = [{"img_path": row["file_name"], "prompt": row["text"]} for row in ROWS]  # JourneyDB's names
    table = tmp_path / ("list.csv" if style == "csv" else "list.json")
    with table.open("w", newline="", encoding="utf-8") as file:
        if style == "csv":
            writer = csv.DictWriter(file, ["img_path", "prompt"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.write(json.dumps(rows) if style == "json" else "\n".join(json.dumps(row) for row in rows))
    assert [(name, text) for name, text, _ in pairs(table, "list")] == [
        ("a.png", "first"),
        ("b.png", "sécond"),
        ("c.png", "third"),
    ]


def test_columns_and_root_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    write_files(tmp_path / "pictures")
    (tmp_path / "list.json").write_text(json.dumps([{"where": "c.png", "what": "third", "text": "another"}]))
    options = {"root": str(tmp_path / "pictures"), "file_column": "where", "text_column": "what"}
    assert pairs(tmp_path / "list.json", "list", **options) == [("c.png", "third", b"\2")]


def test_webdataset_streams_shards_in_order(tmp_path: Path) -> None:
    write_tar(tmp_path / "000.tar", {"x.jpg": b"X", "x.txt": b"an x", "y.png": b"Y", "y.json": b'{"caption": "a y"}'})
    write_tar(tmp_path / "001.tar", {"z.webp": b"Z", "z.txt": b" a z "})
    found = [("x.jpg", "an x", b"X"), ("y.png", "a y", b"Y"), ("z.webp", "a z", b"Z")]
    for path in (tmp_path, tmp_path / "{000..001}.tar", f"file://{tmp_path}/{{000..001}}.tar"):
        assert [(name.split(":")[-1], *rest) for name, *rest in pairs(path, "webdataset")] == found


def test_webdataset_skips_samples_without_caption_and_damaged_shards(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(tmp_path / "000.tar", {"x.jpg": b"X", "y.jpg": b"Y", "y.txt": b"a y"})
    (tmp_path / "001.tar").write_bytes(b"no archive" * 100)
    write_tar(tmp_path / "002.tar", {"z.jpg": b"Z", "z.json": b"{no json"})
    assert [text for _, text, _ in pairs(tmp_path, "webdataset")] == ["a y"]
    assert "000.tar:x" in caplog.text
    assert "001.tar" in caplog.text
    assert "002.tar:z" in caplog.text


def test_the_stamp_follows_files_and_captions(tmp_path: Path) -> None:
    write_files(tmp_path)
    table = tmp_path / "metadata.jsonl"
    stamps = set()
    for change in (None, "caption", "file"):
        rows = [{**ROWS[0], "text": "new"}] if change else ROWS[:1]
        table.write_text(json.dumps(rows[0]))
        if change == "file":
            (tmp_path / "a.png").write_bytes(b"longer than before")
        stamps.add(open_source(DataConfig(path=str(tmp_path))).stamp)
    assert len(stamps) == 3


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({}, {}, "holds pictures and a metadata.jsonl"),
        ({}, {"kind": "list"}, "reads a file of captions, but there is no"),
        (
            {"metadata.jsonl": '{"file_name": "a.png", "alt": "x"}'},
            {},
            "needs a column text or caption or prompt; it has",
        ),
        ({"metadata.jsonl": '{"file_name": "a.png"'}, {}, "metadata.jsonl, line 1 is not JSON"),
        ({"metadata.jsonl": '["a.png"]'}, {}, "must hold objects with a file name and a caption"),
        ({"list.json": '["a.png"]'}, {"kind": "list"}, "must hold objects with a file name and a caption"),
        ({"metadata.jsonl": json.dumps(ROWS[0])}, {"where": {"split": "x"}}, "has no row with split: x"),
        ({"metadata.jsonl": json.dumps(ROWS[0])}, {"where": {"split": ["x", "y"]}}, "has no row with split: x or y"),
        ({"metadata.jsonl": json.dumps(ROWS[0])}, {"where": {"set": "x"}}, "data.where asks for 'set', but"),
        ({"metadata.jsonl": '{"file_name": "a.png", "text": null}'}, {}, "has no 'text'. Fill it in"),
        ({}, {"kind": "webdataset"}, "needs .tar shards; .* has none"),
        ({}, {"kind": "webdataset", "where": {"a": "b"}}, "leave out data.where"),
    ],
)
def test_bad_data_are_explained(tmp_path: Path, files: dict[str, str], options: dict[str, Any], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    path = tmp_path / "list.json" if options.get("kind") == "list" else tmp_path
    with pytest.raises(ValueError, match=message):
        open_source(DataConfig(path=str(path), **options))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "000.tar", {})
    with pytest.raises(ValueError, match=r"001.tar does not exist"):
        open_source(DataConfig(path=str(tmp_path / "{000..001}.tar"), kind="webdataset"))
