"""The closed, typed schema of measuring scenes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from diffusemble.config.schema import Scheduler, Schema, Seed, Side, Text, listed, nearest
from diffusemble.evaluation.config import Count, Names
from diffusemble.evaluation.scenes.systems import STANDARD, THREE, SceneSystem
from diffusemble.evaluation.scenes.variations import VARIATIONS, variation

if TYPE_CHECKING:
    from typing import Self


class SceneBenchConfig(Schema):
    """What protocols of scenes share.

    Attributes:
        base: as in ``SceneConfig``.
        systems: what is compared.
        only: names of those among them that are measured; all by default.
        reference: the system that all others are compared with; the first by default.
        steps, guidance, scheduler: of drawing.
        batch: scenes at a time.
        seed: of the noise and of the intervals.
        bootstrap: samples of every interval.
        out: where pictures and scores are kept; an interrupted run goes on from there.
        report: the page to write.
        threads: of the processor; as torch finds them if 0.
        device, dtype: as in ``SceneConfig``.
    """

    base: Text
    systems: Annotated[tuple[SceneSystem, ...], Field(min_length=1)]
    only: Names = ()
    reference: str = ""
    count: Count | None = None
    steps: Count = 50
    guidance: float = Field(default=7.5, ge=0)
    scheduler: Scheduler = "ddim"
    batch: Count = 1
    seed: Seed = 0
    bootstrap: Count = 10_000
    out: Text
    report: Text
    threads: Annotated[int, Field(ge=0)] = 0
    device: Text = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        names = [system.name for system in self.systems]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two systems are called {name!r}; give each its own name")
        for name in (*self.only, self.compared):
            if name not in names:
                raise ValueError(f"there is no system {name!r}{nearest(name, names)}. Choose among: {', '.join(names)}")
        return self

    @property
    def compared(self) -> str:
        """Name of the system that all others are compared with."""
        return self.reference or self.systems[0].name

    @property
    def measured(self) -> tuple[SceneSystem, ...]:
        """The systems that are measured; the reference is always among them."""
        wanted = {*self.only, self.compared} if self.only else {system.name for system in self.systems}
        return tuple(system for system in self.systems if system.name in wanted)


class ScenesConfig(SceneBenchConfig):
    """The protocol ``scenes``: pictures of held-out scenes of the zoo, judged without a detector.

    ``systems`` are ``STANDARD`` by default, or with ``vary`` the set of that name in ``variations.VARIATIONS``, of
    the members ``kinds``, the base first; ``count`` scenes are taken at even distances over the held-out ones.
    """

    protocol: Literal["scenes"] = "scenes"
    vary: Literal["windows", "lengths", "weights", "bases", "members", "mixes", "peers"] | None = None
    kinds: Names = THREE
    base: Text = "zoo:scenes"
    systems: Annotated[tuple[SceneSystem, ...], Field(min_length=1)] = STANDARD
    count: Count | None = 96
    steps: Count = 20
    guidance: float = Field(default=4.0, ge=0)
    batch: Count = 16
    out: Text = "build/evaluation/scenes"
    report: Text = "build/evaluation/scenes.md"

    @model_validator(mode="before")
    @classmethod
    def _varied(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("vary") not in VARIATIONS or "systems" in given:
            return given
        kinds, steps = (given.get(key, cls.model_fields[key].default) for key in ("kinds", "steps"))
        return {**given, "systems": variation(given["vary"], tuple(listed(kinds)), int(steps))}

    @property
    def compared(self) -> str:
        """The reference; by default AMDM, if it is among the systems."""
        names = [system.name for system in self.systems]
        return self.reference or ("amdm" if "amdm" in names else names[0])


class CocoMigConfig(SceneBenchConfig):
    """The protocol ``coco-mig``: two to six coloured things in boxes, found by detectors (MIGC, arXiv 2402.05408).

    Attributes:
        prompts: the published ``mig_bench.json``.
        count: prompts, at even distances; all 800 by default.
        negative: what not to draw.
        size: height and width in pixels.
        weights: folder with the detectors' weights; the hub's cache is searched as well.
    """

    protocol: Literal["coco-mig"] = "coco-mig"
    prompts: Text
    negative: str = ""
    size: Side = 512
    weights: str = ""
    out: Text = "build/evaluation/coco-mig"
    report: Text = "build/evaluation/coco-mig.md"
