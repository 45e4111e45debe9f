"""Prompts from a user's own file, whatever its form: plain text, a table, JSON, Parquet, or an imagefolder."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusemble.evaluation.config import PicturesConfig

FORMS = ".txt (a prompt per line), .tsv, .csv, .json, .jsonl or .parquet"
Cells = Mapping[str, Any]


@dataclass(frozen=True)
class Prompt:
    """One prompt; ``category`` and ``file_name`` (of its real picture) are empty where the file has none."""

    text: str
    category: str = ""
    file_name: str = ""


def read_prompts(config: PicturesConfig) -> tuple[Prompt, ...]:
    """The prompts of ``config.prompts``, or ``config.count`` of them at even distances.

    Raises:
        ValueError: no such file, another form, a column that it does not have, or no prompt in it.
    """
    path = Path(config.prompts)
    file = _metadata_of(path) if path.is_dir() else path
    rows = read_table(file)
    if not rows:
        raise ValueError(f"{file} holds no prompts. Give a file with at least one.")
    text = _column(rows[0], config.column, "column", file)
    name = next((column for column in config.file_column if column in rows[0]), None)
    if config.originals and name is None:
        name = _column(rows[0], config.file_column, "file_column", file)
    if config.category and config.category not in rows[0]:
        raise ValueError(
            f"{file} has no column {config.category!r} for the categories; it has {', '.join(rows[0])}. Name the "
            f"right one in category, or leave it empty (category=)."
        )
    prompts = [
        Prompt(
            _cell(row, text, number, file),
            str(row[config.category]) if config.category else "",
            str(row[name]) if name else "",
        )
        for number, row in enumerate(rows, start=1)
    ]
    count = len(prompts) if config.count is None else min(config.count, len(prompts))
    return tuple(prompts[index * len(prompts) // count] for index in range(count))


def hash_of(prompts: Sequence[Prompt]) -> str:
    """What identifies these prompts, wherever their file is."""
    return hashlib.sha256(json.dumps([prompt.text for prompt in prompts]).encode()).hexdigest()[:16]


def read_table(file: Path) -> list[dict[str, Any]]:
    """Rows of a file, by column; COCO's caption files give the first caption of every picture.

    Raises:
        ValueError: no such file, another form, or contents that cannot be parsed.
    """
    if not file.is_file():
        raise ValueError(f"There is no file {file}. Give prompts=FILE, with a {FORMS} file, or an imagefolder.")
    if file.suffix == ".parquet":
        from pyarrow import parquet

        return _parsed(file, lambda: parquet.read_table(file).to_pylist())
    if file.suffix not in (".txt", ".tsv", ".csv", ".json", ".jsonl"):
        raise ValueError(f"Prompts come from a {FORMS} file, or from an imagefolder; got {file}. Convert it.")
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix == ".txt":
        return [{"prompt": line.strip()} for line in text.splitlines() if line.strip()]
    if file.suffix in (".csv", ".tsv"):
        return list(csv.DictReader(text.splitlines(), delimiter="\t" if file.suffix == ".tsv" else ","))
    return _parsed(file, lambda: _from_json(text))


def _from_json(text: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = [json.loads(line) for line in text.splitlines() if line.strip()]
    if isinstance(found, dict) and "annotations" in found:
        return _from_coco(found)
    rows = [{"prompt": row} if isinstance(row, str) else row for row in (found if isinstance(found, list) else [found])]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("it must hold texts, or objects with a prompt each")
    return rows


def _from_coco(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = {image["id"]: image["file_name"] for image in found.get("images", [])}
    first: dict[Any, dict[str, Any]] = {}
    for note in sorted(found["annotations"], key=lambda note: note["id"]):
        row = {"caption": note["caption"].strip(), "file_name": names.get(note["image_id"], "")}
        first.setdefault(note["image_id"], row)
    return [first[key] for key in sorted(first)]


def _parsed(file: Path, read: Any) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = read()
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{file} cannot be read: {error}. Export it again, or give another file.") from error
    return rows


def _metadata_of(folder: Path) -> Path:
    for name in ("metadata.jsonl", "metadata.csv"):
        if (folder / name).is_file():
            return folder / name
    raise ValueError(
        f"The folder {folder} has no metadata.jsonl, so its pictures have no prompts. Write one with a line such as "
        f'{{"file_name": "a.png", "text": "a cat"}} for each, or give a {FORMS} file.'
    )


def _column(row: Cells, names: Sequence[str], option: str, file: Path) -> str:
    for name in names:
        if name in row:
            return name
    raise ValueError(
        f"{file} has none of the columns {', '.join(names)}; it has {', '.join(map(str, row))}. Name the right one: "
        f"{option}=NAME."
    )


def _cell(row: Cells, column: str, number: int, file: Path) -> str:
    value = row.get(column)
    if value is None:
        raise ValueError(f"{file}, row {number}: there is no {column!r}. Fill it in, or remove the row.")
    return str(value)
