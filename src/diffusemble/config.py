"""The closed, typed schema of a run, and the one way to read it: a file, then ``key=value`` on top.

Nothing here imports torch, so that a command line can check its settings before it loads a model.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from diffusemble.registry import AGGREGATORS, SCHEDULERS, Entry


class Schema(BaseModel):
    """Base of every configuration: unknown keys are errors, and nothing changes after it was checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, (str, int)) else value


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _switched(value: Any) -> Any:
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_listed), Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Side = Annotated[int, Field(gt=0, multiple_of=8)]


def known(table: Mapping[str, Entry], name: str, what: str) -> str:
    """``name``, if the table has it.

    Raises:
        ValueError: it has not; the message lists those it has.
    """
    if name not in table:
        raise ValueError(f"there is no {what} {name!r}{nearest(name, table)}. Choose one of: {', '.join(table)}")
    return name


class AggregatorConfig(Schema):
    """An aggregator by name, untrained, with its own options (``points: last``, ``preset: small``)."""

    name: str
    options: Mapping[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return known(AGGREGATORS, name, "aggregator")


class AttentionConfig(Schema):
    """Which maps to draw: points by name (``describe`` lists them) and steps from 1; a spread over all by default."""

    points: Annotated[tuple[Text, ...], BeforeValidator(_listed)] = ()
    steps: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_listed)] = ()


class ExpertRecord(Schema):
    """An expert as it was used: SHA-256 of its files, by path relative to the source."""

    name: str
    source: str | None
    files: Mapping[str, str]


class MadeWith(Schema):
    """What a saved configuration was drawn with, beside its settings: where a second drawing may differ."""

    versions: Mapping[str, str]
    device: str
    aggregator: str
    experts: tuple[ExpertRecord, ...]


class GenerateConfig(Schema):
    """A run of ``generate``: which experts, combined how, draw what.

    Attributes:
        prompts: what to draw; every prompt is drawn once per seed.
        negative: what not to draw, for all prompts.
        experts: folders, hub ids, ``.safetensors`` files, ``zoo:<name>`` or ``zoo:<group>``.
        base: folder, hub id or ``zoo:<name>`` that gives single files the parts and settings they lack.
        ensemble: folder of a saved ensemble, instead of ``experts`` and ``aggregator``.
        aggregator: how the experts' features become one. Without it, the aggregator that was trained for the group if
            the zoo has one, else the block-wise mean.
        seeds: one picture of every prompt for each.
        steps: denoising steps.
        guidance: classifier-free guidance scale; 1 switches it off.
        scheduler: a name in ``registry.SCHEDULERS``.
        height, width: pixels, multiples of 8; the experts' own size by default.
        batch: pictures drawn at a time.
        dtype: number type of the experts; float32 on a CPU and float16 elsewhere by default.
        device: ``"cpu"``, ``"cuda:1"``, ``"mps"``; the fastest one there is by default.
        compare: also draw what every expert draws alone and what their block-wise mean draws, on one sheet.
        attention: also draw the aggregator's maps over the pictures.
        out: a folder for numbered pictures, or a file name that ends with ``.png``.
        made_with: written by ``generate``; compared when the configuration is drawn again.
    """

    prompts: Texts
    negative: str = ""
    experts: Texts = ("zoo:topics",)
    base: Text | None = None
    ensemble: Text | None = None
    aggregator: Annotated[AggregatorConfig | None, BeforeValidator(_named)] = None
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_listed), Field(min_length=1)] = (0,)
    steps: int = Field(default=50, ge=1)
    guidance: float = Field(default=7.5, ge=0)
    scheduler: str = "ddim"
    height: Side | None = None
    width: Side | None = None
    batch: int = Field(default=4, ge=1)
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: str = "auto"
    compare: bool = False
    attention: Annotated[AttentionConfig | None, BeforeValidator(_switched)] = None
    out: Text = "outputs"
    made_with: MadeWith | None = None

    @field_validator("scheduler")
    @classmethod
    def _known(cls, name: str) -> str:
        return known(SCHEDULERS, name, "scheduler")

    @model_validator(mode="after")
    def _one_source(self) -> GenerateConfig:
        # Compared by value: a written-out configuration lists every key.
        own = self.aggregator is not None or self.experts != GenerateConfig.model_fields["experts"].default
        if self.ensemble is not None and own:
            raise ValueError(
                "A saved ensemble has its own experts and aggregator: leave 'experts' and 'aggregator' out"
            )
        return self


# -- reading -----------------------------------------------------------------------------------------------------------

M = TypeVar("M", bound=BaseModel)


def load_config(model: type[M], file: str | Path | None = None, overrides: Sequence[str] = (), **settings: Any) -> M:
    """Read a configuration.

    Args:
        model: its schema.
        file: YAML, or a picture that ``generate`` saved.
        overrides: ``"key=value"`` on top of the file, dotted for nested keys; values are YAML.
        settings: further top-level keys, on top of everything.

    Raises:
        ValueError: names the key, what came, and the nearest key there is.
    """
    data = {} if file is None else read_settings(file)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"Overrides look like key=value; got {override!r}. Write for example steps=20.")
        _put(data, key.strip().split("."), _parse(value, f"the value of {key.strip()!r}"))
    try:
        return model.model_validate({**data, **settings})
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
        if inner is None:
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
            yield f"{key}: {problem['ctx']['error']}." if key else f"{problem['ctx']['error']}."
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


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint for error messages: ``(did you mean ...?)``, or nothing."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
