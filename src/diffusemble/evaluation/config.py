"""The closed, typed schema of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from diffusemble.config.ensemble import AggregatorConfig
from diffusemble.config.schema import Scheduler, Schema, Seed, Side, Text, known, listed
from diffusemble.registry import METRICS


def _known_metric(name: str) -> str:
    return known(METRICS, name, "metric")


Count = Annotated[int, Field(ge=1)]
Time = Annotated[int, Field(ge=0)]
Names = Annotated[tuple[Text, ...], BeforeValidator(listed)]
Metrics = Annotated[tuple[Annotated[str, AfterValidator(_known_metric)], ...], BeforeValidator(listed)]
Maybe = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]  # `key=` says nothing
Values = Mapping[str, Annotated[tuple[str, ...], BeforeValidator(listed)]]
ZOO_TIMES = (50, 150, 250, 350, 450, 550, 650, 750, 850, 950)
SPECS = ("ensemble", "model", "aggregator")


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class SystemConfig(Schema):
    """One thing to measure. As text: the name of a built-in system, ``ensemble:PATH`` or ``model:PATH``.

    Attributes:
        name: of a built-in system; with one of the next three, the name that this one gets.
        title: for tables.
        ensemble: folder of a saved ensemble, or ``zoo:<group>``.
        model: any single checkpoint that ``load_experts`` takes, such as a merged model.
        aggregator: how to combine the run's experts, untrained: a name with its options.
    """

    name: Text | None = None
    title: Text | None = None
    ensemble: Text | None = None
    model: Text | None = None
    aggregator: Annotated[AggregatorConfig | None, BeforeValidator(_named)] = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        kind, colon, rest = value.partition(":")
        return {kind: rest} if colon and kind in SPECS else {"name": value}

    @model_validator(mode="after")
    def _one(self) -> SystemConfig:
        given = [spec for spec in SPECS if getattr(self, spec) is not None]
        if len(given) > 1 or not (given or self.name):
            raise ValueError(
                f"a system is the name of a built-in one, or exactly one of {', '.join(SPECS)}; got "
                f"{' and '.join(given) or 'none'}"
            )
        return self


class BenchConfig(Schema):
    """What every protocol shares: who is compared, how pictures are drawn, and where the scores are kept.

    Attributes:
        ensemble: ``zoo:<group>`` or the folder of a saved ensemble.
        experts: instead of an ensemble, the experts alone, as ``load_experts`` takes them; then there is no system
            ``ensemble``.
        base: the model the experts were fine-tuned from, measured as a further row; none if empty.
        systems: what to measure, see ``SystemConfig``; every built-in system by default.
        out: where scores are kept; an interrupted run goes on from there.
        report: the page to write; its pictures and tables go into a folder beside it of the same name.
        steps, guidance, scheduler: of drawing.
        batch: pictures at a time.
        seed: of everything random.
        bootstrap: samples of every interval.
        threads: of the processor; as torch finds them if 0.
        device: ``"cpu"``, ``"cuda:1"``, ``"mps"``; the fastest one there is if ``"auto"``.
        dtype: number type of the experts; float32 on a CPU and float16 elsewhere if ``"auto"``.
    """

    ensemble: Text | None = None
    experts: Names = ()
    base: Maybe = ""
    systems: Annotated[tuple[SystemConfig, ...], BeforeValidator(listed)] = ()
    out: Text = "build/evaluation"
    report: Text = "docs/results.md"
    steps: Count = 50
    guidance: float = Field(default=7.5, ge=0)
    scheduler: Scheduler = "ddim"
    batch: Count = 1
    seed: Seed = 0
    bootstrap: Count = 10_000
    threads: Annotated[int, Field(ge=0)] = 0
    device: Text = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"


class EvaluateConfig(BenchConfig):
    """The protocol ``zoo``: held-out loss, prompt match, style, and distances of features, on pictures held out.

    Attributes:
        data: imagefolder with ``metadata.jsonl`` (file_name, text, concept, style, topic, split).
        grounds: for each expert the pictures it was made for, as values of columns; the zoo's experts bring theirs.
        times: timesteps of the held-out loss.
        draws: noises per picture and timestep.
        held_out: pictures of each split, at even distances; all of them by default.
        images: pictures each system draws; captions are those of the held-out pairs, again with new noise if there
            are fewer of them.
        metrics: further scores of drawn pictures, names in ``registry.METRICS`` of those that score single pictures.
    """

    protocol: Literal["zoo"] = "zoo"
    ensemble: Text | None = "zoo:topics"
    base: Maybe = "zoo:base"
    data: Text = "build/zoo/data"
    grounds: Mapping[str, Values] = {}
    times: Annotated[tuple[Time, ...], BeforeValidator(listed), Field(min_length=1)] = ZOO_TIMES
    draws: Count = 1
    held_out: Count | None = None
    images: Count = 171
    steps: Count = 20
    guidance: float = Field(default=4.5, ge=0)
    batch: Count = 57
    metrics: Metrics = ("style-probe",)
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "float32"


class PicturesConfig(BenchConfig):
    """A protocol of drawn pictures: prompts from a file, metrics of ``registry.METRICS``. Defaults: protocols/*.yaml.

    Attributes:
        prompts: .txt, .tsv, .csv, .json, .jsonl or .parquet file, or an imagefolder with ``metadata.jsonl``.
        column: the prompts' column; the first of these that the file has.
        category: a column by which a further table is cut; none if empty.
        file_column: column with the name of each prompt's real picture, below ``originals``.
        originals: folder of the prompts' real pictures, for metrics that compare with them.
        references: folder of the pictures that sets are compared with.
        count: prompts to use, at even distances; all of them by default.
        images: pictures of every prompt, from different noises.
        repeats: how often all of this is drawn anew; more can be added to a finished run.
        size: height and width in pixels.
        metrics: names in ``registry.METRICS``.
        weights: folder with the metrics' weights; the hub's cache is searched as well.
    """

    protocol: Literal["coco", "drawbench", "diffusiondb", "journeydb", "laion-coco"]
    prompts: Text
    column: Names = ("prompt", "text", "caption")
    category: Maybe = ""
    file_column: Names = ("file_name",)
    originals: Maybe = ""
    references: Maybe = ""
    count: Count | None = None
    images: Count = 1
    repeats: Count = 1
    size: Side = 512
    metrics: Annotated[Metrics, Field(min_length=1)]
    weights: Maybe = ""

    @model_validator(mode="after")
    def _someone(self) -> PicturesConfig:
        if self.ensemble is None and not self.experts:
            raise ValueError("nobody is there to draw; give ensemble (a saved one) or experts (folders, files, ids)")
        return self
