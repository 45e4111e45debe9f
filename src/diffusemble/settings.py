"""The one way to read a configuration: a YAML file or a picture, then ``key=value`` on top."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from diffusemble.config.schema import nearest

M = TypeVar("M", bound=BaseModel)


def load_config(model: type[M], file: str | Path | None = None, overrides: Sequence[str] = (), **settings: Any) -> M:
    """Read a configuration.

    Args:
        model: its schema.
        file: YAML, or a picture that ``generate`` saved.
        overrides: ``"key=value"`` on top of the file and the settings, dotted for nested keys; values are YAML.
        settings: keys and values on top of the file.

    Raises:
        ValueError: names the key, what came, and the nearest key there is.
    """
    data = {**({} if file is None else read_settings(file)), **settings}
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


def read_settings(file: str | Path) -> dict[str, Any]:
    """Keys and values of a YAML file, or of the configuration inside a picture that ``generate`` saved.

    Raises:
        ValueError: the file is missing, or holds no configuration.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"There is no file {file}. Give a YAML file or a picture that `diffusemble generate` wrote.")
    if file.suffix.lower() == ".png":
        from diffusemble.pictures.metadata import read_document

        text = read_document(file)
    else:
        text = file.read_text(encoding="utf-8")
    data = _parse(text, str(file))
    if not isinstance(data, dict):
        raise ValueError(
            f"{file} must hold keys and values (`steps: 20`); it holds {type(data).__name__}: {data!r:.60}."
        )
    return data


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
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        came = f"{problem['input']!r:.80}"
        fields = _fields(model, problem["loc"][:-1])
        if problem["type"] == "extra_forbidden":
            close = nearest(str(problem["loc"][-1]), fields)
            yield f"there is no key {key!r} (value {came}){close}. Keys: {', '.join(fields)}."
        elif problem["type"] == "missing":
            yield f"the key {key!r} is missing. Add it."
        elif problem["type"] == "value_error":
            why = str(problem["ctx"]["error"]).rstrip(".")
            yield f"{key}: {why}." if key else f"{why}."
        else:
            yield f"{key} {re.sub('^[A-Z][a-z]+ should', 'must', problem['msg'])}; got {came}."


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
