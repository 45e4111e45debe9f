"""Webdataset shards: consecutive members of a ``.tar`` with one base name are one sample."""

from __future__ import annotations

import functools
import json
import logging
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from diffusemble.training.config import DataConfig
from diffusemble.training.source import TEXT_COLUMNS, Picture, Source, score_of, stamp_of

log = logging.getLogger(__name__)

PICTURE_TYPES = ("jpg", "jpeg", "png", "webp")


def open_shards(config: DataConfig) -> Source:
    """The data set in the shards that ``config.path`` names.

    Raises:
        ValueError: there are none, or settings are given that only tables have.
    """
    if config.where or config.root or config.file_column:
        raise ValueError("Webdataset shards hold pictures and captions alone: leave out data.where, root, file_column.")
    shards = _shards(config.path)
    files = [(shard, *stamp_of(Path(shard))) for shard in shards]
    stamp = json.dumps([config.text_column, config.score_column, files])
    return Source(stamp, lambda: _stream(shards, config))


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


def _stream(shards: Sequence[str], config: DataConfig) -> Iterator[Picture]:
    for shard in shards:
        try:
            for key, sample in _samples(shard):
                kind = next((kind for kind in PICTURE_TYPES if kind in sample), None)
                fields = _fields_of(sample)
                caption = _caption_of(sample, fields, config.text_column)
                if kind is None or caption is None:
                    kinds = ", ".join(PICTURE_TYPES)
                    log.warning("Skipped %s:%s: a sample needs a picture (%s) and a .txt or .json.", shard, key, kinds)
                else:
                    score = score_of(fields, config.score_column, f"{shard}:{key}.json")
                    yield Picture(f"{shard}:{key}.{kind}", caption, functools.partial(bytes, sample[kind]), score)
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


def _fields_of(sample: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        fields = json.loads(sample.get("json", b"{}"))
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _caption_of(sample: Mapping[str, bytes], fields: Mapping[str, Any], text_column: str | None) -> str | None:
    if "txt" in sample and text_column is None:
        return sample["txt"].decode("utf-8", errors="replace").strip()
    found = (fields.get(name) for name in (TEXT_COLUMNS if text_column is None else (text_column,)))
    return next((str(text) for text in found if text is not None), None)
