"""The closed, typed schema of a run; ``settings.load_config`` reads it.

Nothing here imports torch, so that a command line can check its settings before it loads a model.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from diffusemble.adapter_config import AdapterConfig
from diffusemble.memory_config import MemoryConfig
from diffusemble.registry import AGGREGATORS, SCHEDULERS, Entry
from diffusemble.schema import Schema, Text, Texts, listed
from diffusemble.units import parse_bytes


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint for error messages: ``(did you mean ...?)``, or nothing."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _switched(value: Any) -> Any:
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


Prompts = Annotated[tuple[str, ...], BeforeValidator(listed), Field(min_length=1)]
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


def _known_scheduler(name: str) -> str:
    return known(SCHEDULERS, name, "scheduler")


Scheduler = Annotated[str, AfterValidator(_known_scheduler)]
"""A name in ``registry.SCHEDULERS``."""

Options = TypeVar("Options", bound=BaseModel)


def chosen(model: type[Options], options: Mapping[str, Any], what: str, also: Iterable[str] = ()) -> Options:
    """A method's ``options``, checked; ``what`` names the method, ``also`` what it takes beside its fields.

    Raises:
        ValueError: an option that it does not have, or a value that the option cannot have.
    """
    known = [*model.model_fields, *also]
    for option in options:
        if option not in known:
            raise ValueError(f"{what} has no option {option!r}. Its options are: {', '.join(known) or 'none'}.")
    try:
        return model(**options)
    except ValidationError as error:
        raise ValueError("\n".join(_explain(what, error))) from error


def _explain(method: str, error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        option = ".".join(str(part) for part in problem["loc"])
        own = problem.get("ctx", {}).get("error")  # a message of this package
        what = own or f"{problem['msg']}; got {problem['input']!r:.80}."
        yield f"{method}, option {option!r}: {what}" if option else f"{method}: {what}"


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

    points: Annotated[tuple[Text, ...], BeforeValidator(listed)] = ()
    steps: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(listed)] = ()


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


class EnsembleConfig(Schema):
    """Which experts, combined how.

    Attributes:
        experts: folders, hub ids, ``.safetensors`` files, ``zoo:<name>`` or ``zoo:<group>``.
        base: folder, hub id or ``zoo:<name>`` that gives single files the parts and settings they lack; or several, of
            which a file takes the first of its family.
        vae: for all experts in the place of their own: a folder, a file, or the name of one of them.
        aggregator: how the experts' features become one. Without it, the aggregator that was trained for the group if
            the zoo has one, else the block-wise mean.
        level: where experts meet: at every block, or (also experts that differ) in what they predict.
        ensemble: folder of a saved ensemble, instead of the five above.
        dtype: number type of the experts; float32 on a CPU and float16 elsewhere by default.
        device: ``"cpu"``, ``"cuda:1"``, ``"mps"``; the fastest one there is by default.
    """

    experts: Texts = ("zoo:topics",)
    base: Text | Texts | None = None
    vae: Text | None = None
    aggregator: Annotated[AggregatorConfig | None, BeforeValidator(_named)] = None
    level: Literal["block", "output"] = "block"
    ensemble: Text | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: str = "auto"

    @model_validator(mode="after")
    def _one_source(self) -> EnsembleConfig:
        given = (self.experts, self.level)  # by value: a written-out configuration lists every key
        own = self.aggregator or self.base or self.vae or given != (("zoo:topics",), "block")
        if self.ensemble is not None and own:
            others = "leave 'experts', 'base', 'vae', 'level' and 'aggregator' out"
            raise ValueError(f"a saved ensemble brings its own experts and aggregator; {others}")
        return self


class RefinerConfig(EnsembleConfig):
    """SDXL's second stage: an ensemble of refiners.

    Attributes:
        start: share of the steps after which it goes on from the base's latents.
        aesthetic_score, negative_aesthetic_score: what the refiners are told about the picture, and for the negative
            prompt.
    """

    start: float = Field(default=0.8, gt=0, lt=1)
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5

    @model_validator(mode="after")
    def _has_experts(self) -> RefinerConfig:
        if self.ensemble is None and "experts" not in self.model_fields_set:
            raise ValueError("a refiner needs 'experts' or 'ensemble': the zoo has none")
        return self


class GenerateConfig(AdapterConfig, EnsembleConfig):
    """A run of ``generate``: draw what, how, with which adapters (``AdapterConfig``).

    Attributes:
        prompts: what to draw; every prompt is drawn once per seed. An empty one leaves it to the experts.
        negative: what not to draw, for all prompts.
        seeds: one picture of every prompt for each.
        steps: denoising steps.
        guidance: classifier-free guidance scale; 1 switches it off.
        scheduler: a name in ``registry.SCHEDULERS``.
        height, width: pixels, multiples of 8; the experts' own size by default.
        batch: pictures drawn at a time.
        compare: also draw what every expert draws alone and what their block-wise mean draws, on one sheet.
        attention: also draw the aggregator's maps over the pictures.
        memory_budget: most memory to use on the device, such as ``"8GB"``; a plan is chosen that keeps to it.
        memory: what that plan may do, or the plan itself.
        refiner: an ensemble of SDXL refiners that draws the last steps.
        out: a folder for numbered pictures, or a file name that ends with ``.png``.
        made_with: written by ``generate``; compared when the configuration is drawn again.
    """

    prompts: Prompts
    negative: str = ""
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(listed), Field(min_length=1)] = (0,)
    steps: int = Field(default=50, ge=1)
    guidance: float = Field(default=7.5, ge=0)
    scheduler: Scheduler = "ddim"
    height: Side | None = None
    width: Side | None = None
    batch: int = Field(default=4, ge=1)
    compare: bool = False
    attention: Annotated[AttentionConfig | None, BeforeValidator(_switched)] = None
    memory_budget: str | None = None
    memory: MemoryConfig | None = None
    refiner: RefinerConfig | None = None
    out: Text = "outputs"
    made_with: MadeWith | None = None

    @model_validator(mode="after")
    def _refiner_alone(self) -> GenerateConfig:
        for key in ("guidance_interval", "memory_budget", "memory", "attention"):
            if self.refiner is not None and getattr(self, key) is not None:
                raise ValueError(f"{key} knows one stage only; leave it out, or leave 'refiner' out")
        if (self.memory_budget or self.memory) and (self.controlnets or self.image_prompts):
            raise ValueError("memory_budget does not count ControlNets and image prompts; leave it or them out")
        return self

    @field_validator("memory_budget")
    @classmethod
    def _bytes(cls, budget: str | None) -> str | None:
        if budget is not None:
            parse_bytes(budget)
        return budget
