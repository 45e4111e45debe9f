"""The schema of an ensemble: which experts, how they become one, and where they meet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from diffusemble.config.schema import Schema, Text, Texts, known
from diffusemble.registry import AGGREGATORS


def named(default: str) -> BeforeValidator:
    """What turns an aggregator's name alone into its configuration, and options alone into those of ``default``."""

    def complete(value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        return {"name": default, **value} if isinstance(value, Mapping) else value

    return BeforeValidator(complete)


class AggregatorConfig(Schema):
    """An aggregator by name, untrained, with its own options (``points: last``, ``preset: small``)."""

    name: str
    options: Mapping[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return known(AGGREGATORS, name, "aggregator")


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
    aggregator: Annotated[AggregatorConfig | None, named("mean")] = None
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
