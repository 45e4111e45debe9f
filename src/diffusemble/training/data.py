"""Captioned pictures from an imagefolder, a list of files, or webdataset shards."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import logging
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from diffusemble.training.config import DataConfig

log = logging.getLogger(__name__)

FILE_COLUMNS = ("file_name", "img_path", "image", "path", "file", "filename")
TEXT_COLUMNS = ("text", "caption", "prompt")
PICTURE_TYPES = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True)
class Picture:
    """One captioned picture that is not read yet; ``name`` is what messages call it."""

    name: str
    caption: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        stamp: text that changes when the data change (names, captions, sizes, times of change).
        pictures: starts a new pass over all pictures, always in the same order.
        total: their number, where it is known before reading.
    """

    stamp: str
    pictures: Callable[[], Iterator[Picture]]
    total: int | None = None


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
        return _webdataset(config)
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
    pairs = [(root / _cell(row, file_column, table), str(_cell(row, text_column, table))) for row in rows]
    stamp = json.dumps([(str(file.resolve()), text, *_stamp(file)) for file, text in pairs])
    return Source(stamp, lambda: (Picture(str(file), text, file.read_bytes) for file, text in pairs), len(pairs))


def read_rows(table: Path) -> list[dict[str, Any]]:
    """Rows of a ``.jsonl``, ``.json`` (a list of objects) or ``.csv`` file.

    Raises:
        ValueError: the file is none of these, or cannot be parsed; the message names file and line.
    """
    text = table.read_text(encoding="utf-8-sig")
    if table.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    if table.suffix == ".json" and text.lstrip().startswith("["):
        return _parse(text, f"{table}")
    lines = enumerate(text.splitlines(), start=1)  # JourneyDB's .json files hold one object per line, too
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


def _stamp(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        return (0, 0)  # a missing file is skipped, and named, when it is read
    return status.st_size, status.st_mtime_ns


# -- webdataset: consecutive members of a .tar with one base name are one sample ---------------------------------------


def _webdataset(config: DataConfig) -> Source:
    if config.where or config.root or config.file_column:
        raise ValueError("Webdataset shards hold pictures and captions alone: leave out data.where, root, file_column.")
    shards = _shards(config.path)
    stamp = json.dumps([(shard, *_stamp(Path(shard))) for shard in shards])
    return Source(stamp, lambda: _stream(shards, config.text_column))


def _shards(path: str) -> list[str]:
    found = sorted(map(str, Path(path).glob("*.tar"))) if Path(path).is_dir() else expand_braces(path)
    missing = [shard for shard in found if "://" not in shard and not Path(shard).is_file()]
    if not found or missing:
        problem = f"{missing[0]} does not exist" if missing else f"{path} has none"
        raise ValueError(
            f"Webdataset needs .tar shards; {problem}. Give a folder of .tar files, one file or address, or a pattern "
            f"such as 'shards/{{000..009}}.tar'."
        )
    return found


def expand_braces(pattern: str) -> list[str]:
    """``"a{08..10}.tar"`` to ``["a08.tar", "a09.tar", "a10.tar"]``."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    numbers = range(int(first), int(last) + 1)
    return [
        rest
        for number in numbers
        for rest in expand_braces(f"{pattern[: match.start()]}{number:0{len(first)}d}{pattern[match.end() :]}")
    ]


def _stream(shards: Sequence[str], text_column: str | None) -> Iterator[Picture]:
    for shard in shards:
        try:
            for key, sample in _samples(shard):
                kind = next((kind for kind in PICTURE_TYPES if kind in sample), None)
                caption = _caption_of(sample, text_column)
                if kind is None or caption is None:
                    kinds = ", ".join(PICTURE_TYPES)
                    log.warning("Skipped %s:%s: a sample needs a picture (%s) and a .txt or .json.", shard, key, kinds)
                else:
                    yield Picture(f"{shard}:{key}.{kind}", caption, functools.partial(bytes, sample[kind]))
        except (tarfile.TarError, OSError) as error:
            log.warning("Skipped the rest of the shard %s: %s", shard, error)


def _samples(shard: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Base name and files by ending of every sample, read from front to end as the bytes come."""
    key, sample = "", dict[str, bytes]()
    stream: Any = urlopen(shard) if "://" in shard else Path(shard).open("rb")  # noqa: SIM115 (closed below)
    with stream as opened, tarfile.open(fileobj=opened, mode="r|*") as archive:
        for member in archive:
            folder, _, name = member.name.rpartition("/")
            stem, _, ending = name.partition(".")
            content = archive.extractfile(member)
            if content is None:
                continue
            if f"{folder}/{stem}" != key and sample:
                yield key.lstrip("/"), sample
                sample = {}
            key = f"{folder}/{stem}"
            sample[ending.lower()] = content.read()
    if sample:
        yield key.lstrip("/"), sample


def _caption_of(sample: Mapping[str, bytes], text_column: str | None) -> str | None:
    if "txt" in sample and text_column is None:
        return sample["txt"].decode("utf-8", errors="replace").strip()
    try:
        fields = json.loads(sample.get("json", b"{}"))
    except ValueError:
        return None
    found = (fields.get(name) for name in (TEXT_COLUMNS if text_column is None else (text_column,)))
    return next((str(text) for text in found if text is not None), None)
