"""One optimiser step on what learns in an ensemble, on any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diffusemble.aggregators.storage import name_of
from diffusemble.ensembles.base import Ensemble
from diffusemble.training.average import WeightAverage
from diffusemble.training.chance import Chance, Draw, seed_of
from diffusemble.training.config import RunConfig
from diffusemble.training.corpus import Corpus
from diffusemble.training.levels import probabilities
from diffusemble.training.objective import Batch, Denoise, Diffusion, Objective
from diffusemble.training.rate import rate_at


@dataclass(frozen=True)
class Taken:
    """What one optimiser step gave: mean loss of the batch, norm of the gradient before clipping, learning rate."""

    loss: float
    norm: float
    rate: float


class Learner:
    """The weights of an ensemble that want gradients, their optimiser, and what they learn from.

    Args:
        config: the run.
        ensemble: frozen experts with the aggregator to train; adapters on the experts may learn too.
        accelerator: where and in which precision to run.
        corpus: encoded training data.
        diffusion: the experts' forward process.
        teach: what to minimise, for this learner.

    Raises:
        ValueError: the aggregator has nothing to learn, the batch does not divide by the processes, or there are no
            such timesteps, or none that the levels ever draw.
    """

    def __init__(
        self,
        config: RunConfig,
        ensemble: Ensemble,
        accelerator: Accelerator,
        corpus: Corpus,
        diffusion: Diffusion,
        teach: Callable[[Learner], Objective],
    ) -> None:
        self.config, self.ensemble, self.accelerator = config, ensemble, accelerator
        self.corpus, self.diffusion = corpus, diffusion
        self.parts = accelerator.num_processes * config.accumulate
        if config.batch % self.parts:
            raise ValueError(
                f"batch counts all pictures of a step and must divide into {accelerator.num_processes} processes x "
                f"{config.accumulate} accumulated parts; got {config.batch}. Use a multiple of {self.parts}."
            )
        self.weights = [weight for weight in ensemble.parameters() if weight.requires_grad]
        if not self.weights:
            raise ValueError(
                f"The aggregator {name_of(ensemble.aggregator)!r} has no weights, so there is nothing to train. Choose "
                f"another, such as 'sabw'."
            )
        self.optimizer = torch.optim.AdamW(self.weights, lr=config.rate, weight_decay=config.weight_decay)
        times = _timesteps(config, len(diffusion))
        odds = _odds(config, diffusion, times)
        self.chance = Chance(config.seed, config.batch, len(corpus), times, config.drop_prompt, odds)
        self.average = WeightAverage(self.weights, config.ema) if config.ema else None
        self.objective = teach(self)
        if accelerator.num_processes > 1:
            _exchange_what_learns(ensemble)
        # Everything is where it belongs already, which in a memory plan is not one place.
        self.model: nn.Module = accelerator.prepare_model(ensemble.train(), device_placement=False)
        self.prepared: Any = accelerator.prepare_optimizer(self.optimizer)

    def advance(self, step: int) -> Taken:
        """Optimiser step number ``step``, counted from 0.

        Raises:
            FloatingPointError: loss or gradient are not finite; the weights are as they were before the step.
        """
        process = self.accelerator.process_index
        torch.manual_seed(seed_of(self.config.seed, "layers", step, process))  # for aggregators that draw themselves
        draw = self.chance.draw(step, self.corpus.shape)
        loss = torch.zeros((), device=self.accelerator.device)
        for number in range(self.config.accumulate):
            part = draw.part(process * self.config.accumulate + number, self.parts)
            loss += self._backward(self._batch(part), last=number == self.config.accumulate - 1)
        mean = self.accelerator.reduce(loss, "mean").item()
        norm = float(self.accelerator.clip_grad_norm_(self.weights, self.config.clip))
        self._refuse_broken(step, mean, norm)
        rate = rate_at(step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.prepared.step()
        self.prepared.zero_grad()
        if self.average is not None:
            self.average.update()
        return Taken(mean, norm, rate)

    def denoise_with(self, model: nn.Module) -> Denoise:
        """What objectives call: a denoiser, called as the experts want it."""
        return partial(self.corpus.feed.predict, model)

    @contextmanager
    def shown(self) -> Iterator[Ensemble]:
        """The ensemble as it is measured, drawn with and saved: with averaged weights if the run averages them."""
        with nullcontext() if self.average is None else self.average.in_place():
            self.ensemble.eval()
            yield self.ensemble
            self.ensemble.train()

    def state_dict(self) -> dict[str, Any]:
        """Weights, their averages, optimiser and loss scale."""
        state: dict[str, Any] = {
            "aggregator": self.ensemble.aggregator.state_dict(),
            "adapters": self._adapters,
            "optimizer": self.optimizer.state_dict(),
        }
        if self.average is not None:
            state["average"] = self.average.averages
        scaler = self.accelerator.scaler
        return state if scaler is None else {**state, "scaler": scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo ``state_dict``."""
        self.ensemble.aggregator.load_state_dict(state["aggregator"])
        for weight, kept in zip(self._adapters, state["adapters"], strict=True):
            weight.data.copy_(kept)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load(state["average"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    @property
    def _adapters(self) -> list[Tensor]:
        return [weight for weight in self.ensemble.denoisers.parameters() if weight.requires_grad]

    def _batch(self, draw: Draw) -> Batch:
        latents = self.corpus.latents[draw.indices.tolist()]
        inputs = self.corpus.inputs(draw.indices, draw.dropped)
        return Batch(latents, draw.noise, draw.timesteps, inputs).to(self.accelerator.device)

    def _backward(self, batch: Batch, last: bool) -> Tensor:
        # Processes exchange gradients only with the last part of a step.
        with nullcontext() if last else self.accelerator.no_sync(self.model):
            loss = self.objective(self.denoise_with(self.model), batch, self.diffusion).mean() / self.config.accumulate
            self.accelerator.backward(loss)
        return loss.detach()

    def _refuse_broken(self, step: int, loss: float, norm: float) -> None:
        # With a loss scale, a gradient that overflows only makes the scaler skip the step and lower the scale.
        if math.isfinite(loss) and (math.isfinite(norm) or self.accelerator.scaler is not None):
            return
        raise FloatingPointError(
            f"Step {step} gave a loss of {loss} with a gradient of norm {norm}; both must stay finite. Nothing of this "
            f"step was kept, and the last checkpoint is whole. Lower rate (now {self.config.rate:g}), lengthen warmup "
            f"(now {self.config.warmup}) or widen precision (now {self.config.precision}), in another output folder."
        )


def _exchange_what_learns(ensemble: Ensemble) -> None:
    """Let processes leave the frozen experts alone: they are equal, and in a memory plan not on the device."""
    tensors = (
        *ensemble.denoisers.named_parameters(prefix="denoisers", remove_duplicate=False),
        *ensemble.denoisers.named_buffers(prefix="denoisers", remove_duplicate=False),
    )
    frozen = [name for name, tensor in tensors if not tensor.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(ensemble, frozen)


def _timesteps(config: RunConfig, count: int) -> range:
    first, last = config.timesteps or (0, count - 1)
    if last >= count:
        raise ValueError(
            f"The experts' noise schedule has the timesteps 0 to {count - 1}, so timesteps cannot end at {last}. Stay "
            f"within them."
        )
    return range(first, last + 1)


def _odds(config: RunConfig, diffusion: Diffusion, times: range) -> Tensor | None:
    odds = probabilities(config.levels, diffusion)
    if odds is not None and not odds[times.start : times.stop].sum() > 0:
        raise ValueError(
            f"levels draws none of the timesteps {times.start} to {times.stop - 1}: all it draws lies outside them. "
            f"Widen levels.spread, move levels.mean, or train on other timesteps."
        )
    return odds
