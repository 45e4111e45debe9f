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
from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.experts.adapters import add_adapters
from diffusemble.training.average import WeightAverage
from diffusemble.training.cache import fingerprint
from diffusemble.training.chance import seed_of
from diffusemble.training.config import DistillConfig
from diffusemble.training.consistency import consistent, guided, huber_distance, jump_on_grid, solver_step
from diffusemble.training.learner import Learner
from diffusemble.training.objective import Batch, Denoise, Diffusion, Objective, add_noise
from diffusemble.training.run import Callback, Lesson, launch, run


def distill(config: DistillConfig, ensemble: EnsembleDenoiser | None = None, progress: Callback | None = None) -> Path:
    """Distil the ensemble that ``config`` names; the same call again goes on from the last checkpoint.

    Args:
        config: the run.
        ensemble: the ensemble, where it is loaded already; it is changed.
        progress: called after every encoded shard and every step.

    Returns:
        ``config.output``, a folder that ``EnsembleDenoiser.from_pretrained`` opens, adapters included. It draws with
        guidance 1 and diffusers' ``LCMScheduler`` (``original_inference_steps=config.grid``).

    Raises:
        ValueError: something in the configuration cannot work.
        FloatingPointError: loss or gradient became infinite or undefined.
        StorageError: the disk is full; the last checkpoint is untouched.
    """
    student = EnsembleDenoiser.from_pretrained(_folder(config.ensemble)) if ensemble is None else ensemble
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
    _refuse_others(learner.diffusion)
    ensemble = learner.denoise_with(learner.ensemble)
    teacher = WeightAverage(learner.weights, decay=1)
    empty = learner.corpus.inputs(torch.tensor([0]), torch.tensor([True]))

    def target(noisy: Tensor, start: Tensor, end: Tensor, batch: Batch, diffusion: Diffusion) -> Tensor:
        alphas, ends, kind = _cumulative(diffusion, start), _cumulative(diffusion, end), diffusion.prediction_type
        with teacher.in_place():
            wanted = _predict(ensemble, noisy, start, batch.inputs)
            without = _predict(ensemble, noisy, start, _without(empty, batch.inputs))
        earlier = solver_step(guided(wanted, without, config.guidance), noisy, alphas, ends, kind)
        with learner.average.in_place() if learner.average else nullcontext():
            return consistent(_predict(ensemble, earlier, end, batch.inputs), earlier, end, ends, kind)

    def objective(denoise: Denoise, batch: Batch, diffusion: Diffusion) -> Tensor:
        jump = jump_on_grid(batch.timesteps, len(diffusion), config.grid)
        alphas = _cumulative(diffusion, jump.start)
        noisy = add_noise(batch.latents, batch.noise, diffusion.at(jump.start))
        with torch.no_grad():  # first: it changes the weights in place, which no gradient may have to go through
            aim = target(noisy, jump.start, jump.end, batch, diffusion)
        said = _predict(denoise, noisy, jump.start, batch.inputs)
        found = consistent(said, noisy, jump.start, alphas, diffusion.prediction_type)
        return huber_distance(found, aim, config.huber)

    return objective


def _predict(denoise: Denoise, noisy: Tensor, timesteps: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    return denoise(noisy, timesteps, inputs).float()


def _cumulative(diffusion: Diffusion, timesteps: Tensor) -> Tensor:
    """ᾱ of the timesteps."""
    return diffusion.at(timesteps).alpha.square()


def _refuse_others(diffusion: Diffusion) -> None:
    if diffusion.prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"Latent consistency distillation steps along a diffusion, by predicted noise or velocity; these experts "
            f"predict {diffusion.prediction_type!r}. Distil ensembles of SD 1.x, SD 2.x or SDXL, or train with "
            f"`diffusemble train` and draw in more steps."
        )


def _without(empty: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of a batch with the empty prompt's row in the place of each text; sizes stay each sample's own."""
    return {
        name: value
        if name == "time_ids"
        else _without(empty[name], value)
        if isinstance(value, Mapping)
        else empty[name].to(value.device).expand_as(value)
        for name, value in inputs.items()
    }


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
