"""Files that are not what their names say, or are broken: each is told by its own message, never opened."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapter_files import write
from diffusemble import load_experts
from diffusemble.experts.inspection.folders import inspect
from diffusemble.experts.inspection.report import Report
from tiny import small_unet


def only(path: Path, hashed: bool = False) -> Report:
    (report,) = inspect(path, hashed)
    return report


def pickle_in_a_zip(file: Path) -> None:
    torch.save({"a": torch.zeros(1)}, file)


def plain_zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("read.me", "rock")


def cut_off(file: Path) -> None:
    save_file({"a": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:-500])


def cut_in_its_header(file: Path) -> None:
    save_file({"a" * 500: torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:200])


def with_more_behind(file: Path) -> None:
    save_file({"a": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes() + b"moss")


def with_a_damaged_header(file: Path) -> None:
    save_file({"a": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes().replace(b"data_offsets", b"data_offsetz"))


def of_header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


WRONG: dict[str, tuple[bytes | Callable[[Path], None], str]] = {
    "empty": (b"", "is empty: a download that never began"),
    "zip": (plain_zip, "is a zip archive, whatever its name. Unpack it first"),
    "torch": (pickle_in_a_zip, r"is a pickle in a zip \(torch.save\), .*docs/loading.md has the command"),
    "pickle": (b"\x80\x02}q\x00." + b" " * 50, "is a pickle, whatever its name: opening one can run any program"),
    "gguf": (b"GGUF\x03" + bytes(50), r"is a GGUF file \(quantised, for other programs\).*fp8 files are read"),
    "page": (b"<!DOCTYPE html><html>" + b" " * 50, "is a web page: the site answered with a page in place of the file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS in place of the file"),
    "message": (b'{"success": false}\n', "is a text in place of a model, perhaps an error message of a web site: "),
    "archive": (b"Rar!" + b" " * 50, "is a packed archive"),
    "gzip": (b"\x1f\x8b\x08" + bytes(50), "is a packed archive"),
    "zeros": (bytes(2000), "is damaged: it begins with zeros, so its download was never finished. Copy"),
    "deep": (of_header(b'{"a":' + b"[" * 100_000), r"its header cannot be read \(RecursionError\)"),
    "infinite": (of_header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1e999]}}'), r"\(OverflowError\)"),
    "shape": (of_header(b'{"a":{"dtype":"F32","shape":["x"],"data_offsets":[0,0]}}'), r"cannot be read \(ValueError\)"),
    "metadata": (of_header(b'{"__metadata__":["a"]}'), r"its header cannot be read \(AttributeError\)"),
    "letters": (of_header(b'{"\xff":1}'), r"its header cannot be read \(UnicodeDecodeError\)"),
    "huge": ((1 << 50).to_bytes(8, "little") + b"{}", "it does not begin like a safetensors file"),
    "noise": (b"\xff" * 50, "is damaged: it does not begin like a safetensors file"),
    "cut": (cut_off, r"is cut off: it has [\d,]+ bytes, and its header tells of [\d,]+. The download was broken off"),
    "header": (cut_in_its_header, r"is cut off or damaged: its header should have \d+ bytes, 192 are there"),
    "more": (with_more_behind, "is damaged: 4 bytes follow the last tensor"),
    "json": (with_a_damaged_header, r"is damaged: its header cannot be read \(KeyError\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_say_what_they_are_to_inspect_and_to_load(name: str, tmp_path: Path) -> None:
    content, message = WRONG[name]
    file = tmp_path / "opal.safetensors"
    file.write_bytes(content) if isinstance(content, bytes) else content(file)
    report = only(file, hashed=True)
    assert report.what is None
    assert report.sha256 is not None
    with pytest.raises(ValueError, match=message) as raised:
        load_experts(file)
    assert str(raised.value) == report.problem


def test_a_header_whose_length_looks_like_a_pickle_is_a_header(tmp_path: Path) -> None:
    for number in range(500, 640):
        file = write({"a" * number + ".weight": torch.zeros(1)}, tmp_path / "odd.safetensors")
        if file.read_bytes()[:2] == b"\x80\x02":
            break
    else:
        pytest.fail("no header had 640 bytes")
    assert "fit nothing that is known here" in str(only(file).problem)


def test_other_things_are_told_too(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("rock")
    assert "is a .txt file" in str(only(tmp_path / "notes.txt").problem)
    assert "There is no file or folder" in str(only(tmp_path / "gone").problem)
    (tmp_path / "bare").mkdir()
    assert "holds no models" in str(only(tmp_path / "bare").problem)
    (tmp_path / "bare/config.json").write_text('{"_class_name": "AutoencoderKL"}')
    assert "but no .safetensors weights" in str(only(tmp_path / "bare").problem)
    (tmp_path / "bare/config.json").write_text("{")
    assert "is not readable JSON" in str(only(tmp_path / "bare").problem)
    torch.save({}, tmp_path / "model.ckpt")
    assert "is a pickle in a zip" in str(only(tmp_path / "model.ckpt").problem)
    quantised = {**small_unet().state_dict(), "x.SCB": torch.zeros(1)}
    report = only(write(quantised, tmp_path / "q.safetensors"))
    assert (report.what, str(report.problem)[:22]) == ("SD 1.x checkpoint", "It is quantised: int8 ")
