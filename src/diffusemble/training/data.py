"""Captioned pictures from an imagefolder, a list of files, or webdataset shards."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusemble.training.config import DataConfig
from diffusemble.training.source import TEXT_COLUMNS, Picture, Source, score_of, stamp_of
from diffusemble.training.webdataset import open_shards

FILE_COLUMNS = ("file_name", "img_path", "image", "path", "file", "filename")


def open_sources(configs: Sequence[DataConfig]) -> Source:
    """All pictures of several data sets, one set after the other.

    Raises:
        ValueError: see ``open_source``.
    """
    sources = [open_source(config) for config in configs]
    if len(sources) == 1:
        return sources[0]
    totals = [source.total for source in sources]
    return Source(
        json.dumps([source.stamp for source in sources]),
        lambda: itertools.chain.from_iterable(source.pictures() for source in sources),
        None if None in totals else sum(total or 0 for total in totals),
    )


def open_source(config: DataConfig) -> Source:
    """The data set that ``config`` describes.

    Raises:
        ValueError: the folder, file or column does not exist, or no row is left.
    """
    if config.kind == "webdataset":
        return open_shards(config)
    path = Path(config.path)
    table = _metadata_of(path) if config.kind == "imagefolder" else path
    if not table.is_file():
        raise ValueError(
            f"Data kind {config.kind!r} reads a file of captions, but there is no {table}. Check data.path."
        )
    rows = [row for row in read_rows(table) if _chosen(row, config.where, table)]
    if not rows:
        raise ValueError(
            f"{table} has no row with {_wanted(config.where) or 'a picture'}. Check data.where and the file."
        )
    file_column = _column(rows[0], config.file_column, FILE_COLUMNS, "file_column", table)
    text_column = _column(rows[0], config.text_column, TEXT_COLUMNS, "text_column", table)
    root = Path(config.root) if config.root is not None else table.parent
    files = [root / _cell(row, file_column, table) for row in rows]
    texts = [str(_cell(row, text_column, table)) for row in rows]
    found = list(zip(files, texts, [score_of(row, config.score_column, table) for row in rows], strict=True))
    stamp = json.dumps([(str(file.resolve()), text, score, *stamp_of(file)) for file, text, score in found])
    return Source(stamp, lambda: (Picture(str(file), text, file.read_bytes, s) for file, text, s in found), len(found))


def read_rows(table: Path) -> list[dict[str, Any]]:
    """Rows of a ``.jsonl``, ``.json`` (a list of objects) or ``.csv`` file.

    Raises:
        ValueError: the file is none of these, or cannot be parsed; the message names file and line.
    """
    text = table.read_text(encoding="utf-8-sig")
    if table.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline="")))
    if table.suffix == ".json" and text.lstrip().startswith("["):
        rows = _parse(text, f"{table}")
    else:  # JourneyDB's .json files hold one object per line, too. Captions may hold other ends of lines than these.
        lines = enumerate(text.split("\n"), start=1)
        rows = [_parse(line, f"{table}, line {number}") for number, line in lines if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{table} must hold objects with a file name and a caption. Write one object per picture.")
    return rows


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error}). Correct it, or export the list again.") from error


def _metadata_of(folder: Path) -> Path:
    for name in ("metadata.jsonl", "metadata.csv"):
        if (folder / name).is_file():
            return folder / name
    raise ValueError(
        f'An imagefolder holds pictures and a metadata.jsonl with one {{"file_name": ..., "text": ...}} per line; '
        f"{folder} has none. Write one, or choose data.kind 'list' or 'webdataset'."
    )


def _column(row: Mapping[str, Any], chosen: str | None, usual: Sequence[str], option: str, table: Path) -> str:
    for name in usual if chosen is None else (chosen,):
        if name in row:
            return name
    raise ValueError(
        f"{table} needs a column {chosen or ' or '.join(usual)}; it has {', '.join(map(str, row))}. Name the right one "
        f"in data.{option}."
    )


def _cell(row: Mapping[str, Any], column: str, table: Path) -> str:
    if row.get(column) is None:
        raise ValueError(f"{table}: the row {dict(row)} has no {column!r}. Fill it in, or remove the row.")
    return row[column]


def _chosen(row: Mapping[str, Any], where: Mapping[str, Sequence[str]], table: Path) -> bool:
    for column in where:
        if column not in row:
            raise ValueError(f"data.where asks for {column!r}, but {table} has a row without it: {dict(row)}.")
    return all(str(row[column]) in values for column, values in where.items())


def _wanted(where: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{column}: {' or '.join(values)}" for column, values in where.items())
