"""The closed, typed schema of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from diffusemble.config import AggregatorConfig, Schema, Seed, Text, Texts


class DataConfig(Schema):
    """Captioned pictures.

    Attributes:
        path: ``imagefolder``: a folder with ``metadata.jsonl`` (or ``.csv``); ``list``: a ``.json``, ``.jsonl`` or
            ``.csv`` file; ``webdataset``: a folder of ``.tar`` files, one such file, or a pattern ``{000..009}.tar``.
        kind: how ``path`` is read.
        root: folder that relative file names start from; the folder of the metadata by default.
        where: columns and the value each must have, to use a part of the rows (``{split: train}``).
        file_column: column with the file name; by default the first of ``data.FILE_COLUMNS`` there is.
        text_column: column with the caption; by default the first of ``data.TEXT_COLUMNS`` there is.
    """

    path: str
    kind: Literal["imagefolder", "list", "webdataset"] = "imagefolder"
    root: str | None = None
    where: Mapping[str, str] = {}
    file_column: str | None = None
    text_column: str | None = None


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
    """

    prompts: Texts
    every: int = Field(default=500, gt=0)
    steps: int = Field(default=50, gt=0)
    guidance: float = Field(default=7.5, ge=0)
    seed: Seed = 0


class TrainConfig(Schema):
    """One training run; the defaults are those of AFA (ICLR 2025) for SD 1.5.

    Attributes:
        experts: folders, hub ids, ``.safetensors`` files or ``zoo:<group>``, in the order of their maps.
        base: folder, hub id or ``zoo:<name>`` that gives single files the parts they lack.
        data: what to train on.
        output: folder of the result, the log and the checkpoint; the same folder again goes on where it stopped.
        aggregator: what to train.
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
        drop_prompt: probability, for every picture by itself, of training with the empty prompt.
        precision: ``bf16`` and ``fp16`` hold the frozen experts in that type and compute in mixed precision.
        gradient_checkpointing: recompute the experts' activations in the backward pass, to save memory.
        log_every: steps between two lines of the log.
        save_every: steps between two checkpoints.
        tensorboard: also write event files to ``<output>/tensorboard``.
    """

    experts: Texts
    base: Text | None = None
    data: DataConfig
    output: Path
    aggregator: AggregatorConfig = AggregatorConfig(name="sabw")
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
    drop_prompt: float = Field(default=0.1, ge=0, le=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    seed: Seed = 0
    log_every: int = Field(default=10, gt=0)
    save_every: int = Field(default=500, gt=0)
    tensorboard: bool = False

    @model_validator(mode="after")
    def _parts_are_equal(self) -> TrainConfig:
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch must be a multiple of accumulate, so that all parts weigh the same; got batch {self.batch} and "
                f"accumulate {self.accumulate}. Change one of them"
            )
        return self

    @property
    def cache_folder(self) -> Path:
        """Where encoded pictures and captions are kept."""
        return self.cache or self.output / "cache"
