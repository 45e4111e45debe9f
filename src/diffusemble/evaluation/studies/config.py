"""The closed, typed schema of every study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from diffusemble.config.schema import Prompts, Scheduler, Schema, Seed, Text, Texts, listed
from diffusemble.evaluation.config import ZOO_TIMES, Count, Names, SystemConfig, Time

Counts = Annotated[tuple[Count, ...], BeforeValidator(listed), Field(min_length=1)]
Damage = Literal["clean", "blur", "jpeg", "noise", "captions"]
DAMAGES: tuple[Damage, ...] = ("clean", "blur", "jpeg", "noise", "captions")


class StudyConfig(Schema):
    """What every study has.

    Attributes:
        ensemble: ``zoo:<group>`` or the folder of a saved ensemble.
        data: imagefolder with ``metadata.jsonl`` (file_name, text, concept, style, topic, split).
        split: which of its pictures are held out, to measure on.
        out: where scores and trained aggregators are kept, for all studies together; an interrupted study goes on.
        docs: the page of a study goes to a folder of its name in here.
        held_out: pictures of the held-out loss, at even distances over the split; all of them if ``null``.
        times: timesteps of the held-out loss.
        draws: noises per picture and timestep.
        images: pictures each system draws, captions at even distances over the split.
        steps, guidance, scheduler: of drawing.
        batch: pictures at a time.
        seed: of everything random.
        metrics: scores of single pictures, names in ``registry.METRICS``; sentences are about the first one.
        weights: folder with the metrics' weights, for those whose weights do not come as packages.
        bootstrap: samples of every interval.
        threads: of the processor; as torch finds them if 0.
        device, dtype: where all runs, and in which number type the experts; the fastest device there is, and float32
            on a CPU and float16 elsewhere, if ``"auto"``.
    """

    ensemble: Text = "zoo:topics"
    data: Text = "build/zoo/data"
    split: Text = "pair"
    out: Text = "build/studies"
    docs: Text = "docs/studies"
    held_out: Count | None = 96
    times: Annotated[tuple[Time, ...], BeforeValidator(listed), Field(min_length=1)] = ZOO_TIMES
    draws: Count = 1
    images: Count = 60
    steps: Count = 20
    guidance: float = Field(default=4.5, ge=0)
    scheduler: Scheduler = "ddim"
    batch: Count = 32
    seed: Seed = 0
    metrics: Annotated[tuple[Text, ...], BeforeValidator(listed), Field(min_length=1)] = ("prompt-match", "style-probe")
    weights: str = ""
    bootstrap: Count = 10_000
    threads: Annotated[int, Field(ge=0)] = 0
    device: Text = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"


class ExpertsConfig(StudyConfig):
    """More experts, fewer steps: ``ensembles`` in rising number of experts, ``at`` steps, ``systems`` beside them."""

    ensembles: Texts = ("zoo:two", "zoo:topics", "zoo:four", "zoo:five", "zoo:six")
    at: Counts = (50, 40, 30, 20, 10)
    systems: Names = ("weight-average", "noise-average")
    images: Count = 20


class StepsConfig(StudyConfig):
    """Fewer steps: ``systems`` (as ``evaluate`` takes them) drawn with each number of steps in ``at``."""

    at: Counts = (50, 40, 30, 20, 10)
    systems: Annotated[tuple[SystemConfig, ...], BeforeValidator(listed)] = tuple(
        SystemConfig(name=name)
        for name in ("weight-average", "noise-average", "block-average", "magicfusion", "ensemble")
    )
    images: Count = 60


class TrainedConfig(StudyConfig):
    """A study of aggregators that are trained alike.

    Attributes:
        variants: which of the study's variants; all by default.
        folders: saved ensembles for variants by name, instead of training them.
        recipe: configuration of ``diffusemble train`` that all variants share.
        train_steps: optimiser steps of every variant.
        training: further keys on top of the recipe (``training.rate=0.002``).
    """

    variants: Names = ()
    folders: Mapping[str, Text] = {}
    recipe: Text = "recipes/zoo/ensemble.yaml"
    train_steps: Count = 200
    training: Mapping[str, Any] = {}


class CopiesConfig(TrainedConfig):
    """One good expert with ``counts`` copies of a poor one; by default the ensemble's best and its worst."""

    good: Text | None = None
    poor: Text | None = None
    counts: Counts = (1, 2, 3, 4, 5)
    train_steps: Count = 100


class QualityConfig(TrainedConfig):
    """The aggregator's training pictures clean, and damaged in several ways."""

    variants: Annotated[tuple[Damage, ...], BeforeValidator(listed)] = DAMAGES


class WinnersConfig(StudyConfig):
    """Which expert errs least, where and when."""

    draws: Count = 4


class AttentionConfig(StudyConfig):
    """Whom the aggregator listens to, over time and depth; ``prompts`` are drawn with their maps."""

    prompts: Prompts = ("hot red face, openmoji style", "frog, twemoji style", "sailboat, noto style")


class PromptsConfig(StudyConfig):
    """Gains by kind of prompt; ``show`` captions with the largest gain and as many with the largest loss."""

    held_out: Count | None = None
    images: Count = 171
    show: Count = 6


class CostConfig(StudyConfig):
    """What a step costs, for 2 to ``experts`` experts; ``repeats`` rounds are timed.

    ``presets`` of SABW are counted for Stable Diffusion 1.5, too.
    """

    experts: Annotated[int, Field(ge=2)] = 6
    repeats: Count = 7
    presets: Names = ("paper", "lite", "small")


class DistilledConfig(StudyConfig):
    """Very few steps: saved ensembles by name in ``folders`` against the undistilled one, ``at`` steps.

    ``few`` is the sampler of the distilled ones, ``few_guidance`` their guidance scale.
    """

    folders: Mapping[str, Text] = {}
    at: Counts = (1, 2, 4, 8)
    few: Scheduler = "lcm"
    few_guidance: float = Field(default=1.0, ge=0)


CONFIGS: Mapping[str, type[StudyConfig]] = {
    "experts": ExpertsConfig,
    "steps": StepsConfig,
    "ablations": TrainedConfig,
    "mixtures": TrainedConfig,
    "copies": CopiesConfig,
    "quality": QualityConfig,
    "training": TrainedConfig,
    "winners": WinnersConfig,
    "attention": AttentionConfig,
    "granularity": TrainedConfig,
    "prompts": PromptsConfig,
    "cost": CostConfig,
    "distilled": DistilledConfig,
}
"""By the names of ``registry.STUDIES``."""
