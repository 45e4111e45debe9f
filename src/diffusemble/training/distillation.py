"""Distil an ensemble to few steps: latent consistency distillation (Luo et al. 2023, arXiv 2310.04378).

The teacher is the ensemble as it is, with guidance; the student is the same ensemble, of which the aggregator learns,
and with ``lora`` adapters on the experts too.

accelerate launch -m diffusemble.training.distillation config.yaml [key=value]...
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusemble import zoo
from diffusemble.ensembles.assembly import open_ensemble
from diffusemble.ensembles.base import Ensemble
from diffusemble.experts.adapters import add_adapters
from diffusemble.training.average import WeightAverage
from diffusemble.training.cache import fingerprint
from diffusemble.training.chance import seed_of
from diffusemble.training.checkpoint import check_places
from diffusemble.training.config import DistillConfig
from diffusemble.training.consistency import (
    Jump,
    Place,
    consistent,
    guided,
    huber_distance,
    jump_on_grid,
    solver_step,
)
from diffusemble.training.learner import Learner
from diffusemble.training.objective import Batch, Denoise, Diffusion, Objective, add_noise
from diffusemble.training.run import Callback, Lesson, launch, run


def distill(config: DistillConfig, ensemble: Ensemble | None = None, progress: Callback | None = None) -> Path:
    """Distil the ensemble that ``config`` names; the same call again goes on from the last checkpoint.

    Args:
        config: the run.
        ensemble: the ensemble, where it is loaded already; it is changed.
        progress: called after every encoded shard and every step.

    Returns:
        ``config.output``, a folder that ``open_ensemble`` opens, adapters included. It draws with guidance 1 and
        diffusers' ``LCMScheduler`` (``original_inference_steps=config.grid``), of flows ``FlowMatchLCMScheduler``.

    Raises:
        ValueError: something in the configuration cannot work.
        FloatingPointError: loss or gradient became infinite or undefined.
        StorageError: the disk is full; the last checkpoint is untouched.
    """
    check_places(config)
    student = open_ensemble(_folder(config.ensemble)) if ensemble is None else ensemble
    teacher = fingerprint([student.aggregator])
    if config.lora:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(config.seed, "adapters"))
            add_adapters(student.denoisers, config.lora)
    lesson = Lesson(
        build=lambda: student,
        teach=lambda learner: consistency_objective(learner, config),
        identity={"teacher": teacher},
    )
    return run(config, lesson, progress)


def consistency_objective(learner: Learner, config: DistillConfig) -> Objective:
    """The distance of f(z_s, s) from where the target network ends when the teacher has gone from s to e (LCM, eq. 14).

    The teacher is what the learner's weights are now; the target network is the learner's moving average.
    """
    ensemble = learner.denoise_with(learner.ensemble)
    teacher = WeightAverage(learner.weights, decay=1)
    empty = learner.corpus.inputs(torch.tensor([0]), torch.tensor([True]))

    def target(noisy: Tensor, jump: Jump, batch: Batch, kind: str) -> Tensor:
        with teacher.in_place():
            wanted = _predict(ensemble, noisy, jump.start, batch.inputs)
            if config.guidance != 1:
                without = _predict(ensemble, noisy, jump.start, without_prompts(empty, batch.inputs))
                wanted = guided(wanted, without, config.guidance)
        earlier = solver_step(wanted, noisy, jump, kind)
        with learner.average.in_place() if learner.average else nullcontext():
            return consistent(_predict(ensemble, earlier, jump.end, batch.inputs), earlier, jump.end, kind)

    def objective(denoise: Denoise, batch: Batch, diffusion: Diffusion) -> Tensor:
        jump, kind = jump_on_grid(batch.timesteps, diffusion, config.grid), diffusion.prediction_type
        noisy = add_noise(batch.latents, batch.noise, jump.start.level)
        with torch.no_grad():  # first: it changes the weights in place, which no gradient may have to go through
            aim = target(noisy, jump, batch, kind)
        found = consistent(_predict(denoise, noisy, jump.start, batch.inputs), noisy, jump.start, kind)
        return huber_distance(found, aim, config.huber)

    return objective


def _predict(denoise: Denoise, noisy: Tensor, place: Place, inputs: Mapping[str, Any]) -> Tensor:
    return denoise(noisy, place.times, inputs).float()


def without_prompts(empty: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of a batch with what the empty prompt has in the place of each text; sizes stay each sample's own."""
    found: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, Mapping):
            found[name] = without_prompts(empty[name], value)
            continue
        found[name] = empty[name].to(value.device).expand(len(value), *empty[name].shape[1:])
        if name == "time_ids":  # behind them, the refiner is told how beautiful what is not asked for is
            found[name] = torch.cat([value[:, :4], found[name][:, 4:]], dim=1)
    return found


def _folder(source: str) -> str:
    group = source.removeprefix("zoo:")
    if group == source:
        return source
    folder = zoo.trained_ensemble(group)
    if folder is None:
        raise ValueError(f"The zoo ships no trained ensemble {group!r}. Give the folder of an ensemble, or train one.")
    return str(folder)


if __name__ == "__main__":
    import sys

    launch(distill, DistillConfig, sys.argv[1:])
