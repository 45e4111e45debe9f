"""The closed, typed schema of an evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from diffusemble.config import Schema, Seed, Text, listed

Count = Annotated[int, Field(ge=1)]
Time = Annotated[int, Field(ge=0)]
ZOO_TIMES = (50, 150, 250, 350, 450, 550, 650, 750, 850, 950)


class EvaluateConfig(Schema):
    """A run of ``evaluate``: one ensemble against its experts and the controls, on captioned pictures held out.

    Attributes:
        protocol: what is measured; ``zoo`` is held-out loss, prompt match, and distances of features.
        ensemble: ``zoo:<group>`` or the folder of a saved ensemble.
        base: the model the experts were fine-tuned from, measured as a further row; none if empty.
        systems: names of the systems to measure; all by default.
        data: imagefolder with ``metadata.jsonl`` (file_name, text, concept, style, topic, split).
        out: where scores are kept; an interrupted run goes on from there.
        report: the page to write; its pictures go into a folder beside it of the same name.
        times: timesteps of the held-out loss.
        draws: noises per picture and timestep.
        held_out: pictures of each split, at even distances; all of them by default.
        images: pictures each system draws; captions are those of the held-out pairs.
        steps, guidance, scheduler: of drawing.
        batch: pictures at a time.
        seed: of everything random.
        bootstrap: samples of every interval.
        threads: of the processor; as torch finds them if 0.
    """

    protocol: Literal["zoo"] = "zoo"
    ensemble: Text = "zoo:topics"
    base: str = "zoo:base"
    systems: Annotated[tuple[Text, ...], BeforeValidator(listed)] = ()
    data: Text = "build/zoo/data"
    out: Text = "build/evaluation"
    report: Text = "docs/results.md"
    times: Annotated[tuple[Time, ...], BeforeValidator(listed), Field(min_length=1)] = ZOO_TIMES
    draws: Count = 1
    held_out: Count | None = None
    images: Count = 171
    steps: Count = 20
    guidance: float = Field(default=4.5, ge=0)
    scheduler: str = "ddim"
    batch: Count = 57
    seed: Seed = 0
    bootstrap: Count = 10_000
    threads: Annotated[int, Field(ge=0)] = 0
