"""Train an aggregator: experts frozen, captioned pictures in, an ensemble folder out (AFA, ICLR 2025, section 3.3).

accelerate launch -m diffusemble.training.train config.yaml [key=value]...
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import InitProcessGroupKwargs
from diffusers import DDPMScheduler

from diffusemble.ensemble import EnsembleDenoiser, build_aggregator
from diffusemble.experts.expert import Expert
from diffusemble.settings import load_config
from diffusemble.training.chance import seed_of
from diffusemble.training.config import TrainConfig
from diffusemble.training.corpus import Corpus, encode_corpus
from diffusemble.training.learner import Learner
from diffusemble.training.objective import Diffusion, Objective, noise_error
from diffusemble.training.routing import objective_of
from diffusemble.training.watch import Watch, identity_of

log = logging.getLogger(__name__)


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


_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SCHEDULE = {
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
}

Callback = Callable[[Progress], None]


def train(
    config: TrainConfig,
    experts: Sequence[Expert] | None = None,
    progress: Callback | None = None,
    objective: Objective | None = None,
) -> Path:
    """Train the aggregator that ``config`` describes; the same call again goes on from the last checkpoint.

    Args:
        config: the run.
        experts: the experts, where they are loaded already; in mixed precision their denoisers are cast.
        progress: called after every encoded shard and every step.
        objective: what to minimise and to measure, instead of what ``config.objective`` says.

    Returns:
        ``config.output``, a folder that ``EnsembleDenoiser.from_pretrained`` opens.

    Raises:
        ValueError: something in the configuration cannot work.
        FloatingPointError: loss or gradient became infinite or undefined.
        StorageError: the disk is full; the last checkpoint is untouched.
    """
    tell = progress or (lambda _: None)
    with torch.random.fork_rng(devices=[]), _accelerator(config) as accelerator:
        ensemble = build_ensemble(config, experts, accelerator.device)
        diffusion = diffusion_of(ensemble.experts, accelerator.device)
        with accelerator.main_process_first():
            corpus, held_out = _encode(config, ensemble, tell)
        learned = objective or objective_of(config.objective, ensemble)
        learner = Learner(config, ensemble, accelerator, corpus, diffusion, learned)
        # Without weights and terms, so that runs with different objectives compare.
        watch = Watch(learner, held_out, identity_of(config, ensemble.experts, corpus), objective or noise_error)
        started, first = time.monotonic(), watch.step
        if watch.step == 0:
            watch.before()
        for step in range(first, config.steps):
            if watch.over:
                break
            taken = learner.advance(step)
            watch.after(step + 1, taken)
            seconds = (time.monotonic() - started) / (step + 1 - first)
            tell(Progress("steps", step + 1, config.steps, seconds * (config.steps - step - 1), taken.loss))
        watch.close()
    return config.output


def build_ensemble(config: TrainConfig, experts: Sequence[Expert] | None, device: torch.device) -> EnsembleDenoiser:
    """Frozen experts on ``device``, in the type of the precision, and a new float32 aggregator drawn from the seed."""
    if experts is None:
        from diffusemble.experts.load import load_experts

        experts = load_experts(config.experts, base=config.base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, "weights"))
        aggregator = build_aggregator(
            config.aggregator.name, [expert.denoiser for expert in experts], **config.aggregator.options
        )
    # Convolutions are a third faster forwards with their channels last, also on CPUs.
    ensemble = EnsembleDenoiser(experts, aggregator).to(device)
    ensemble.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ensemble.denoisers.to(dtype=_TYPES[config.precision])
    if config.gradient_checkpointing:
        ensemble.enable_gradient_checkpointing()
    return ensemble


def diffusion_of(experts: Sequence[Expert], device: torch.device) -> Diffusion:
    """The DDPM forward process that the experts' scheduler describes.

    Raises:
        ValueError: the experts come without a scheduler, or predict neither noise nor velocity.
    """
    scheduler = experts[0].components.get("scheduler")
    if scheduler is None:
        raise ValueError(
            f"Training needs the noise schedule of the experts, but {experts[0].name!r} comes without a scheduler. "
            f"Load whole pipelines with load_experts([...])."
        )
    known = {key: value for key, value in scheduler.config.items() if key in _SCHEDULE}
    alphas = DDPMScheduler(**known).alphas_cumprod.float().to(device)
    return Diffusion(alphas, scheduler.config.get("prediction_type", "epsilon"))


def _encode(config: TrainConfig, ensemble: EnsembleDenoiser, tell: Callback) -> tuple[Corpus, Corpus | None]:
    def report(stage: str, done: int, total: int | None) -> None:
        tell(Progress(stage, done, total))

    corpus = encode_corpus(config.data, config, ensemble, report)
    return corpus, None if config.held_out is None else encode_corpus([config.held_out], config, ensemble, report)


@contextmanager
def _accelerator(config: TrainConfig) -> Iterator[Accelerator]:
    """An accelerator for this run alone, so that the next run in the same process may use another precision."""
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=24))  # the others wait while the first one encodes
    precision: Any = "no" if config.precision == "fp32" else config.precision
    try:
        if config.precision == "fp16" and PartialState().device.type == "cpu":
            raise ValueError("precision 'fp16' needs an accelerator; this is a CPU. Choose 'bf16' or 'fp32'.")
        yield Accelerator(mixed_precision=precision, kwargs_handlers=[patience])
    finally:
        AcceleratorState._reset_state()
        GradientState._reset_state()


def main(arguments: Sequence[str]) -> None:
    """Train what a YAML file describes, with ``key=value`` on top."""
    level = logging.INFO if PartialState().is_main_process else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    if not arguments:
        raise SystemExit(
            "Give a configuration: accelerate launch -m diffusemble.training.train config.yaml [key=value]..."
        )
    try:
        train(load_config(TrainConfig, arguments[0], arguments[1:]))
    finally:
        PartialState().destroy_process_group()


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
