"""The closed, typed schema of a search for block weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from diffusemble.config.schema import Scheduler, Schema, Seed, Side, Text, Texts, known, listed
from diffusemble.registry import METRICS

Count = Annotated[int, Field(ge=1)]
Time = Annotated[int, Field(ge=0)]
HELD_OUT = "held-out-loss"


class HeldOutPictures(Schema):
    """Captioned pictures whose noise the merged model predicts.

    Attributes:
        data: imagefolder with ``metadata.jsonl`` (file_name, text, concept, style, topic, split).
        split: which of them.
        count: how many, at even distances.
        times: timesteps.
    """

    data: Text
    split: Text = "pair"
    count: Count = 64
    times: Annotated[tuple[Time, ...], BeforeValidator(listed), Field(min_length=1)] = (100, 300, 500, 700, 900)


class SearchConfig(Schema):
    """A run of ``search``: merge, draw, score, keep what is better, slot by slot.

    Attributes:
        experts: two or more, as for ``generate``.
        base: what single files lack, as for ``generate``.
        dtype, device: of the merged model, as for ``generate``.
        scorer: a metric of pictures and prompts (``registry.METRICS``), ``held-out-loss``, or your own
            ``"module:callable"``: ``score(images [b 3 h w] in [0, 1], prompts) -> scores [b]``, higher is better.
        scorer_weights: folder with the scorer's downloaded weights.
        prompts: what to draw and score; every prompt is drawn once per seed.
        negative: what not to draw.
        seeds, steps, guidance, scheduler, height, width, batch: of drawing, as for ``generate``.
        held_out: pictures for ``held-out-loss``, which draws nothing.
        search: what to try in a slot: ``grid`` (0.0, 0.1, ... 1.0), ``bisect`` or ``bisect-midpoint``.
        rounds: halvings of a bisection.
        pairs: two neighbouring slots at a time.
        passes: through all slots; a pass that changes nothing is the last.
        start: block weights to start from, one set per expert (of two experts: those of the second will do); equal
            shares by default.
        out: folder of the log, the recipe and the picture; an interrupted search goes on from there.
        merged: where ``diffusemble merge`` writes the model by the recipe: a folder (``merged`` by default), or a file
            where the experts are files (``merged.safetensors``).
    """

    experts: Texts = ("zoo:topics",)
    base: Text | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: str = "auto"
    scorer: Text = "imagereward"
    scorer_weights: Text | None = None
    prompts: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    negative: str = ""
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(listed), Field(min_length=1)] = (0,)
    steps: Count = 20
    guidance: float = Field(default=7.5, ge=0)
    scheduler: Scheduler = "ddim"
    height: Side | None = None
    width: Side | None = None
    batch: Count = 4
    held_out: HeldOutPictures | None = None
    search: Literal["grid", "bisect", "bisect-midpoint"] = "bisect-midpoint"
    rounds: Count = 3
    pairs: bool = False
    passes: int = Field(default=1, ge=1, le=3)
    start: Any = None
    out: Text = "runs/search"
    merged: Text | None = None

    @field_validator("scorer")
    @classmethod
    def _scorer_known(cls, name: str) -> str:
        return name if name == HELD_OUT or ":" in name else known(METRICS, name, "scorer")

    @model_validator(mode="after")
    def _material(self) -> SearchConfig:
        if self.scorer == HELD_OUT and self.held_out is None:
            raise ValueError(
                f"the scorer {HELD_OUT!r} needs pictures; give held_out.data, a folder with metadata.jsonl"
            )
        if self.scorer != HELD_OUT and not self.prompts:
            raise ValueError("pictures are drawn and scored, but there is no prompt; give several prompts")
        return self
