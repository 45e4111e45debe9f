"""The closed, typed schema of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from diffusemble.config.ensemble import AggregatorConfig, named
from diffusemble.config.memory import MemoryConfig
from diffusemble.config.schema import Prompts, Scheduler, Schema, Seed, Text, Texts
from diffusemble.training.loss_config import LevelsConfig, ObjectiveConfig

R = TypeVar("R", bound="RunConfig")
Timestep = Annotated[int, Field(ge=0)]


def _one_or_more(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


class DataConfig(Schema):
    """Captioned pictures.

    Attributes:
        path: ``imagefolder``: a folder with ``metadata.jsonl`` (or ``.csv``); ``list``: a ``.json``, ``.jsonl`` or
            ``.csv`` file; ``webdataset``: a folder of ``.tar`` files, one such file, or a pattern ``{000..009}.tar``.
        kind: how ``path`` is read.
        root: folder that relative file names start from; the folder of the metadata by default.
        where: columns and the value, or one of the values, each must have, to use a part of the rows
            (``{split: train}``, ``{split: [pair, rest]}``).
        file_column: column with the file name; by default the first of ``data.FILE_COLUMNS`` there is.
        text_column: column with the caption; by default the first of ``data.TEXT_COLUMNS`` there is.
        score_column: column with how beautiful a picture is, from 1 to 10, which SDXL's refiner is told; by default
            ``aesthetic_score`` where there is one.
    """

    path: str
    kind: Literal["imagefolder", "list", "webdataset"] = "imagefolder"
    root: str | None = None
    where: Mapping[str, Prompts] = {}
    file_column: str | None = None
    text_column: str | None = None
    score_column: str | None = None


class HeldOutConfig(DataConfig):
    """Pictures that are never trained on, to measure the loss.

    Attributes:
        count: how many are used, at even distances.
        buckets: number of equal ranges of timesteps; every picture is measured once in each.
        every: steps between two measurements; the first is before the first step.
    """

    count: int = Field(default=64, gt=0)
    buckets: int = Field(default=10, gt=0)
    every: int = Field(default=500, gt=0)


class SamplesConfig(Schema):
    """A sheet of pictures the ensemble draws from fixed prompts and seeds.

    Attributes:
        prompts: one picture each; number i starts from ``seed + i``.
        every: optimiser steps between two sheets.
        steps: denoising steps per picture.
        scheduler: a name in ``registry.SCHEDULERS``; the experts' own by default.
    """

    prompts: Texts
    every: int = Field(default=500, gt=0)
    steps: int = Field(default=50, gt=0)
    guidance: float = Field(default=7.5, ge=0)
    scheduler: Scheduler | None = None
    seed: Seed = 0


class RunConfig(Schema):
    """What every training run has: data, where it leaves what, and how it takes its steps.

    Attributes:
        data: what to train on; of several sets, all pictures together.
        output: folder of the result, the log and the checkpoint; the same folder again goes on where it stopped.
        held_out: pictures for the held-out loss; without them there is no ``best``.
        samples: sheets of pictures during training.
        size: side of the square pictures in pixels.
        crop: where the square is cut from a picture whose shorter side is ``size``.
        cache: folder of the encoded pictures and captions; ``<output>/cache`` by default.
        steps: optimiser steps.
        batch: pictures per optimiser step, over all processes and all accumulated parts together.
        accumulate: parts a process cuts its share of the batch into, to save memory.
        rate: learning rate of AdamW after the warm-up.
        schedule: the rate stays, or falls to nothing on half a cosine.
        warmup: optimiser steps over which the rate rises linearly.
        clip: largest norm of the gradient.
        timesteps: first and last timestep to train on; all by default.
        levels: how often each timestep, that is each level of noise, is drawn.
        drop_prompt: probability, for every picture by itself, of training with the empty prompt.
        embedded_guidance: guidance scale that guidance-distilled experts (FLUX.1 dev) are told; 1 by default, where
            what they predict is the plain flow that the loss compares it with.
        text_tokens: length of a prompt in T5's tokens (FLUX, SD3); as the pipeline draws by default.
        ema: decay per step of a moving average of the weights, which is then what is measured, drawn with and left.
        keep: leave the ensemble of the last step, or the one with the lowest held-out loss.
        patience: stop after this many held-out measurements in a row without a new lowest; never by default.
        precision: ``bf16`` and ``fp16`` hold the frozen experts in that type and compute in mixed precision.
        gradient_checkpointing: recompute activations of experts and aggregator in the backward pass, to save memory.
        memory: where the experts' blocks rest, as for drawing: ``resident`` experts stay on the device, those of the
            others come when they are needed, in the backward pass again; includes ``gradient_checkpointing``. At
            output level experts come whole, and keep nothing. Of several processes each has a device, and a plan.
        log_every: steps between two lines of the log.
        save_every: steps between two checkpoints.
        tensorboard: also write event files to ``<output>/tensorboard``.
    """

    data: Annotated[tuple[DataConfig, ...], BeforeValidator(_one_or_more), Field(min_length=1)]
    output: Path
    held_out: HeldOutConfig | None = None
    samples: SamplesConfig | None = None
    size: int = Field(default=512, gt=0)
    crop: Literal["center", "random"] = "center"
    cache: Path | None = None
    steps: int = Field(default=12_500, gt=0)
    batch: int = Field(default=8, gt=0)
    accumulate: int = Field(default=1, gt=0)
    rate: float = Field(default=1e-4, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0)
    timesteps: tuple[Timestep, Timestep] | None = None
    levels: LevelsConfig = LevelsConfig()
    drop_prompt: float = Field(default=0.1, ge=0, le=1)
    embedded_guidance: float | None = Field(default=None, ge=0)
    text_tokens: int | None = Field(default=None, gt=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    keep: Literal["last", "best"] = "last"
    patience: int | None = Field(default=None, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    memory: MemoryConfig | None = None
    seed: Seed = 0
    log_every: int = Field(default=10, gt=0)
    save_every: int = Field(default=500, gt=0)
    tensorboard: bool = False

    @model_validator(mode="after")
    def _parts_are_equal(self: R) -> R:
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch must be a multiple of accumulate, so that all parts weigh the same; got batch {self.batch} and "
                f"accumulate {self.accumulate}. Change one of them"
            )
        return self

    @model_validator(mode="after")
    def _nothing_controls(self: R) -> R:
        if self.memory is not None and self.memory.controls is not None:
            raise ValueError("memory.controls says where ControlNets are, and training has none; leave it out")
        return self

    @model_validator(mode="after")
    def _timesteps_are_in_order(self: R) -> R:
        if self.timesteps is not None and self.timesteps[0] > self.timesteps[1]:
            raise ValueError(f"timesteps are a first and a last one, such as [0, 999]; got {list(self.timesteps)}")
        return self

    @model_validator(mode="after")
    def _best_is_measured(self: R) -> R:
        if self.held_out is None and (self.keep == "best" or self.patience is not None):
            raise ValueError(
                "keep: best and patience go by the held-out loss, and there is no held_out. Name pictures that are not "
                "trained on (held_out.path), or keep the last"
            )
        return self

    @property
    def cache_folder(self) -> Path:
        """Where encoded pictures and captions are kept."""
        return self.cache or self.output / "cache"


class TrainConfig(RunConfig):
    """Training an aggregator; the defaults are those of AFA (ICLR 2025) for SD 1.5.

    Attributes:
        experts: folders, hub ids, ``.safetensors`` files or ``zoo:<group>``, in the order of their maps.
        base: folder, hub id or ``zoo:<name>`` that gives single files the parts they lack; or several, of which a file
            takes the first of its family.
        vae: for all experts in the place of their own: a folder, a file, or the name of one of them.
        level: where the experts meet: at every block, or (also experts that differ) in what they predict.
        aggregator: what to train.
        objective: what to minimise.
    """

    experts: Texts
    base: Text | Texts | None = None
    vae: Text | None = None
    level: Literal["block", "output"] = "block"
    aggregator: Annotated[AggregatorConfig, named("sabw")] = AggregatorConfig(name="sabw")
    objective: ObjectiveConfig = ObjectiveConfig()

    @model_validator(mode="after")
    def _whole_experts(self) -> TrainConfig:
        if self.level == "output" and self.text_tokens is not None:
            raise ValueError(
                "at level output every expert reads prompts of the length its own pipeline has; leave text_tokens out"
            )
        return self


class DistillConfig(RunConfig):
    """Distilling an ensemble to few steps (latent consistency distillation, arXiv 2310.04378).

    Attributes:
        ensemble: folder of the ensemble, or ``zoo:<group>`` for the one that ships with the zoo.
        guidance: guidance scale that the teacher draws with; the result has it built in and draws with 1.
        grid: steps of the teacher's solver over the whole schedule; each teaches one jump of T / grid timesteps.
        lora: rank of adapters on the experts that learn too; 0 leaves the experts as they are.
        huber: where the distance turns from squared to absolute.
        ema: decay per step of the target network, which is what is left in the end.
    """

    ensemble: Text
    guidance: float = Field(default=7.5, ge=0)
    grid: int = Field(default=50, gt=0)
    lora: int = Field(default=0, ge=0)
    huber: float = Field(default=1e-3, gt=0)
    ema: float = Field(default=0.95, ge=0, lt=1)
    drop_prompt: float = Field(default=0.0, ge=0, le=1)
