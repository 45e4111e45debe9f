"""The one way to read a configuration: a YAML file or a picture, then ``key=value`` on top."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from diffusemble.config.places import looked
from diffusemble.config.schema import Schema, nearest

M = TypeVar("M", bound=BaseModel)

_TELLING = {"generate": "prompts", "control": "instances"}
"""A key by which one knows what a command has written beside what it drew with (``made_with``)."""


def load_config(model: type[M], file: str | Path | None = None, overrides: Sequence[str] = (), **settings: Any) -> M:
    """Read a configuration.

    Args:
        model: its schema.
        file: YAML, or a picture that the command of this schema drew.
        overrides: ``"key=value"`` on top of the file and the settings, dotted for nested keys; values are YAML.
        settings: keys and values on top of the file.

    Raises:
        ValueError: names the key, what came, and the nearest key there is.
    """
    by = model.drawn_by if issubclass(model, Schema) else None
    data = {**({} if file is None else read_settings(file, by)), **settings}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"Settings look like key=value; got {override!r}. Write for example steps=20.")
        _put(data, key.strip().split("."), _parse(value, f"the value of {key.strip()!r}"))
    try:
        return model.model_validate(data)
    except ValidationError as error:
        source = "" if file is None else f"{file}: "
        raise ValueError("\n".join(source + line for line in _explain(model, error))) from error


def read_settings(file: str | Path, by: str | None = None) -> dict[str, Any]:
    """Keys and values of a YAML file, or of the configuration inside a picture.

    Args:
        file: where they are.
        by: the command that draws from such settings; without it, pictures are not read.

    Raises:
        ValueError: the file is missing, holds no configuration, or was drawn by another command.
    """
    file = Path(file)
    give = "Give a YAML file" + (f", or a picture that `diffusemble {by}` drew." if by else ".")
    if not file.is_file():
        what = f"{file} is a folder" if file.is_dir() else f"There is no file {looked(str(file))}"
        raise ValueError(f"{what}. {give}")
    data = _parse(_text(file, give, by is not None), str(file))
    if not isinstance(data, dict):
        raise ValueError(
            f"{file} must hold keys and values (`steps: 20`); it holds {type(data).__name__}: {data!r:.60}."
        )
    other = next((name for name, key in _TELLING.items() if key in data and "made_with" in data), by)
    if other != by:
        raise ValueError(f"{file} was drawn by `diffusemble {other}`, which has other keys. {give}")
    return data


def _text(file: Path, give: str, drawn: bool) -> str:
    if drawn and file.suffix.lower() == ".png":
        from diffusemble.pictures.metadata import read_document

        return read_document(file)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text, so it is no configuration. {give}") from error


def dump_config(config: BaseModel) -> str:
    """YAML of every key, for ``load_config``."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def _parse(text: str, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{what} is no valid YAML: {error}. Quote text that contains : # [ ] or braces.") from error


def _put(data: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for depth, key in enumerate(path[:-1], start=1):
        inner = data.get(key)
        if inner is None or inner is True:  # `attention: true`, then attention.steps=...
            inner = {}
        elif not isinstance(inner, dict):
            raise ValueError(f"{'.'.join(path)}: {'.'.join(path[:depth])!r} is {inner!r}, which has no keys inside.")
        data[key] = inner = dict(inner)
        data = inner
    data[path[-1]] = value


def _explain(model: type[BaseModel], error: ValidationError) -> Iterator[str]:
    unknown: dict[str, list[str]] = {}  # a line for each key that there is not, by those that there are
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        came = f"{problem['input']!r:.80}"
        if problem["type"] == "extra_forbidden":
            there = _fields(model, problem["loc"][:-1])
            close = nearest(str(problem["loc"][-1]), there)
            unknown.setdefault(", ".join(there), []).append(f"there is no key {key!r} (value {came}){close}.")
        elif problem["type"] == "missing":
            yield f"the key {key!r} is missing. Add it."
        elif problem["type"] == "value_error":
            why = str(problem["ctx"]["error"]).rstrip(".")
            yield f"{key}: {why}." if key else f"{why}."
        else:
            yield f"{key} {re.sub('^[A-Z][a-z]+ should', 'must', problem['msg'])}; got {came}."
    for fields, lines in unknown.items():
        yield from lines[:-1]
        yield f"{lines[-1]} Keys: {fields}."


def _fields(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            model = next(_models(model.model_fields[part].annotation), model)
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
