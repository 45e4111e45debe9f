"""The schema of a run of ``generate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from diffusemble.config.adapters import AdapterConfig
from diffusemble.config.ensemble import EnsembleConfig, RefinerConfig
from diffusemble.config.memory import MemoryConfig
from diffusemble.config.schema import Prompts, Scheduler, Schema, Seed, Side, Text, listed
from diffusemble.config.units import MemorySize


def _switched(value: Any) -> Any:
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


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

    drawn_by: ClassVar[str] = "generate"

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
    memory_budget: MemorySize | None = None
    memory: MemoryConfig | None = None
    refiner: RefinerConfig | None = None
    out: Text = "outputs"
    made_with: MadeWith | None = None

    @model_validator(mode="after")
    def _refiner_alone(self) -> GenerateConfig:
        for key in ("guidance_interval", "attention"):
            if self.refiner is not None and getattr(self, key) is not None:
                raise ValueError(f"{key} knows one stage only; leave it out, or leave 'refiner' out")
        return self

    @model_validator(mode="after")
    def _stages_take_turns(self) -> GenerateConfig:
        planned = self.memory_budget is not None or self.memory is not None
        if self.refiner is not None and planned:
            if self.memory is not None and self.memory.parts == "stay":
                raise ValueError("memory.parts: with a refiner the two stages take turns; choose visit or layers")
            if self.refiner.device not in ("auto", self.device):
                raise ValueError("a memory plan is for one device; leave refiner.device out")
        return self

    @model_validator(mode="after")
    def _controls_are_there(self) -> GenerateConfig:
        if self.memory is not None and self.memory.controls is not None and not self.controlnets:
            raise ValueError("memory.controls says where ControlNets are, and there are none; leave it out")
        return self

    @model_validator(mode="after")
    def _adapters_have_steps(self) -> GenerateConfig:
        last = 1.0 if self.refiner is None else self.refiner.start
        steps = [step for step in range(self.steps) if step / self.steps < last]
        for key, nets in (("controlnets", self.controlnets), ("t2i_adapters", self.t2i_adapters)):
            for net in nets:
                if not any(net.acts(step, self.steps) for step in steps):
                    raise ValueError(
                        f"{key}: none of {self.steps} steps lies between the shares {net.start:g} and {net.end:g} as a "
                        f"whole, so {net.model} would not act. Widen them, or draw in more steps"
                    )
        if self.guidance_interval is not None:
            start, stop = self.guidance_interval
            if not any(start <= step / self.steps < stop for step in steps):
                raise ValueError(
                    f"guidance_interval: none of {self.steps} steps begins between {start:g} and {stop:g}. Widen it, "
                    f"or set guidance: 1"
                )
        return self

    @model_validator(mode="after")
    def _guidance_is_there(self) -> GenerateConfig:
        for key, given in (
            ("guidance_interval", self.guidance_interval is not None),
            ("guidance_rescale", self.guidance_rescale > 0),
            ("negative", self.negative != ""),
        ):
            if given and self.guidance <= 1:
                raise ValueError(
                    f"{key} changes guidance, and there is none with guidance: {self.guidance:g}; leave {key} out, or "
                    f"give a guidance above 1"
                )
        return self
