"""Train an aggregator: experts frozen, captioned pictures in, an ensemble folder out (AFA, ICLR 2025, section 3.3).

accelerate launch -m diffusemble.training.train config.yaml [key=value]...
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from diffusemble.ensembles.assembly import assemble
from diffusemble.ensembles.base import Ensemble
from diffusemble.experts.expert import Expert
from diffusemble.training.chance import seed_of
from diffusemble.training.config import TrainConfig
from diffusemble.training.learner import Learner
from diffusemble.training.objective import Objective, prediction_error
from diffusemble.training.place import TYPES
from diffusemble.training.routing import objective_of
from diffusemble.training.run import Callback, Lesson, Progress, launch, run
from diffusemble.training.weighting import check_error

__all__ = ["Progress", "build_ensemble", "train"]


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
        ``config.output``, a folder that ``open_ensemble`` opens.

    Raises:
        ValueError: something in the configuration cannot work.
        FloatingPointError: loss or gradient became infinite or undefined.
        StorageError: the disk is full; the last checkpoint is untouched.
    """
    lesson = Lesson(
        build=lambda: build_ensemble(config, experts),
        teach=lambda learner: objective or _objective(config, learner),
        measured=objective or prediction_error,  # without weights and terms, so that runs compare
    )
    return run(config, lesson, progress)


def _objective(config: TrainConfig, learner: Learner) -> Objective:
    check_error(config.objective.error, learner.diffusion, learner.chance.timesteps)
    return objective_of(config.objective, learner.ensemble)


def build_ensemble(config: TrainConfig, experts: Sequence[Expert] | None = None) -> Ensemble:
    """Frozen experts, and a new aggregator drawn from the seed."""
    if experts is None:
        from diffusemble.experts.load import load_experts

        experts = load_experts(config.experts, base=config.base, vae=config.vae, dtype=TYPES[config.precision])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, "weights"))
        return assemble(experts, config.level, config.aggregator.name, config.aggregator.options)


if __name__ == "__main__":
    import sys

    launch(train, TrainConfig, sys.argv[1:])
