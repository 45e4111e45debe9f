"""What every kind of training shares: encode the data, take the steps, go on where a run was stopped."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import InitProcessGroupKwargs

from diffusemble.calls import check_draws_from_text
from diffusemble.ensembles.base import Ensemble
from diffusemble.settings import load_config
from diffusemble.training.checkpoint import check_places, refuse_another_run
from diffusemble.training.config import DataConfig, RunConfig
from diffusemble.training.corpus import Corpus, encode_corpus
from diffusemble.training.learner import Learner
from diffusemble.training.objective import Objective
from diffusemble.training.place import place
from diffusemble.training.schedule import diffusion_of
from diffusemble.training.watch import Watch, identity_of


@dataclass(frozen=True)
class Progress:
    """How far a run is, for whoever shows it.

    Attributes:
        stage: ``"pictures"`` and ``"captions"`` while they are encoded, then ``"steps"``.
        done: of this stage.
        total: of this stage, where it is known.
        seconds_left: of this stage, once it can be told.
        loss: of the last step.
    """

    stage: str
    done: int
    total: int | None
    seconds_left: float | None = None
    loss: float | None = None


C = TypeVar("C", bound=RunConfig)
Callback = Callable[[Progress], None]


@dataclass(frozen=True)
class Lesson:
    """In what one kind of training differs from another.

    Attributes:
        build: the ensemble, with gradients wanted by exactly the weights that learn.
        teach: the objective, for a learner that has its weights and data.
        measured: the held-out loss; the objective itself by default.
        identity: what else makes this run this run (``watch.identity_of``).
    """

    build: Callable[[], Ensemble]
    teach: Callable[[Learner], Objective]
    measured: Objective | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)


def run(config: RunConfig, lesson: Lesson, progress: Callback | None = None) -> Path:
    """Take all steps of a run, from the last checkpoint if there is one; returns ``config.output``.

    Raises:
        ValueError: something in the configuration cannot work.
        FloatingPointError: loss or gradient became infinite or undefined.
        StorageError: the disk is full; the last checkpoint is untouched.
    """
    tell = progress or (lambda _: None)
    check_places(config)
    with torch.random.fork_rng(devices=[]), _accelerator(config) as accelerator:
        ensemble = lesson.build()
        if config.samples is not None:
            check_draws_from_text(ensemble)
        identity = {**identity_of(config, ensemble.experts), **lesson.identity}
        refuse_another_run(config.output, identity)  # before hours of encoding
        with accelerator.main_process_first():
            # Before the experts come to the device: a small one has no room for both.
            corpus, held_out = _encode(config, ensemble, accelerator.device, tell)
        with place(ensemble, config, accelerator.device):
            tokens = corpus.feed.image_tokens(*corpus.shape[1:])
            diffusion = diffusion_of(ensemble.experts, accelerator.device, tokens)
            learner = Learner(config, ensemble, accelerator, corpus, diffusion, lesson.teach)
            identity["number of pictures"] = len(corpus)
            _take_steps(learner, Watch(learner, held_out, identity, lesson.measured or learner.objective), tell)
    return config.output


def _take_steps(learner: Learner, watch: Watch, tell: Callback) -> None:
    started, first, steps = time.monotonic(), watch.step, learner.config.steps
    if first == 0:
        watch.before()
    for step in range(first, steps):
        if watch.over:
            break
        taken = learner.advance(step)
        watch.after(step + 1, taken)
        seconds = (time.monotonic() - started) / (step + 1 - first)
        tell(Progress("steps", step + 1, steps, seconds * (steps - step - 1), taken.loss))
    watch.close()


def _encode(
    config: RunConfig, ensemble: Ensemble, device: torch.device, tell: Callback
) -> tuple[Corpus, Corpus | None]:
    def encode(data: Sequence[DataConfig]) -> Corpus:
        return encode_corpus(data, config, ensemble, lambda *told: tell(Progress(*told)), device)

    return encode(config.data), None if config.held_out is None else encode([config.held_out])


@contextmanager
def _accelerator(config: RunConfig) -> Iterator[Accelerator]:
    """An accelerator for this run alone, so that the next run in the same process may use another precision."""
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=24))  # the others wait while the first one encodes
    precision: Any = "no" if config.precision == "fp32" else config.precision
    try:
        if config.precision == "fp16" and PartialState().device.type == "cpu":
            raise ValueError("precision 'fp16' needs an accelerator; this is a CPU. Choose 'bf16' or 'fp32'.")
        accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[patience])
        yield accelerator
    finally:
        AcceleratorState._reset_state()
        GradientState._reset_state()


def launch(work: Callable[[C], Path], config: type[C], arguments: Sequence[str]) -> None:
    """Do what a YAML file describes, with ``key=value`` on top, in one of several processes."""
    # Not asked of accelerate: what its state is made of is for the run to say.
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    if not arguments:
        raise SystemExit(f"Give a configuration: accelerate launch -m {work.__module__} config.yaml [key=value]...")
    try:
        work(load_config(config, arguments[0], arguments[1:]))
    finally:
        PartialState().destroy_process_group()
