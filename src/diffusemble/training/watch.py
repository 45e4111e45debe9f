"""What happens between the steps of a run: log, held-out loss, sheets, checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from accelerate.utils import broadcast

from diffusemble.experts.expert import Expert
from diffusemble.settings import dump_config
from diffusemble.training.checkpoint import export, load_checkpoint, restore, save_checkpoint
from diffusemble.training.config import RunConfig
from diffusemble.training.corpus import Corpus
from diffusemble.training.files import remove_partial, replace_file
from diffusemble.training.held_out import HeldOut, held_out_errors
from diffusemble.training.learner import Learner, Taken
from diffusemble.training.lend import lent
from diffusemble.training.log import RunLog
from diffusemble.training.objective import Objective, prediction_error
from diffusemble.training.sheets import draw_sheet

log = logging.getLogger(__name__)

# What may change between two parts of one run, because it does not change what is learned.
_FREE = {"experts", "ensemble", "output", "cache", "samples", "log_every", "save_every", "tensorboard"}
_FREE |= {"accumulate", "gradient_checkpointing", "memory"}


def identity_of(config: RunConfig, experts: Sequence[Expert]) -> dict[str, Any]:
    """What makes this run this run, but for its pictures: with anything else, it would silently train on as another."""
    rounded = {} if config.memory is None or config.memory.storage == "same" else {"storage": config.memory.storage}
    return {
        **config.model_dump(mode="json", exclude=_FREE),
        **rounded,
        "set of experts": [{"name": expert.name, "files": dict(expert.files)} for expert in experts],
    }


class Watch:
    """Goes on from the checkpoint in ``config.output`` if there is one, and writes everything a run leaves behind.

    Args:
        learner: what is trained; its state is replaced by the checkpoint's.
        corpus: held-out data.
        identity: see ``identity_of``.
        measured: the held-out loss.

    Raises:
        ValueError: the folder holds another run, or a damaged checkpoint.
    """

    def __init__(
        self, learner: Learner, corpus: Corpus | None, identity: dict[str, Any], measured: Objective = prediction_error
    ) -> None:
        self.learner, self.config, self.identity = learner, learner.config, identity
        self.measured = measured
        self.folder, self.main = self.config.output, learner.accelerator.is_main_process
        self.step, self.best, self.losses = 0, float("inf"), list[float]()
        self.without_gain = 0  # measurements in a row
        held = self.config.held_out
        self.held_out = (
            HeldOut.choose(corpus, held.count, held.buckets, learner.diffusion) if corpus is not None and held else None
        )
        state = load_checkpoint(self.folder, identity)
        if state is not None:
            learner.load_state_dict(state["learner"])
            self.step, self.best, self.losses = state["step"], state["best"], state["losses"]
            self.without_gain = state["without_gain"]
            log.info("Going on from step %d of %s", self.step, self.folder)
        if self.main:
            remove_partial(self.folder)
            replace_file(self.folder / "config.yaml", dump_config(self.config).encode())
            self.log = RunLog(self.folder, self.step, self.config.tensorboard)
        self._seconds, self._returned = 0.0, time.monotonic()

    @property
    def over(self) -> bool:
        """Whether patience has ended: too many measurements without a new lowest loss."""
        return self.config.patience is not None and self.without_gain >= self.config.patience

    def before(self) -> None:
        """Before the first step: where the run starts from."""
        self._measure(0)
        self._draw(0)
        self._returned = time.monotonic()

    def after(self, step: int, taken: Taken) -> None:
        """After ``step`` steps."""
        self._seconds += time.monotonic() - self._returned  # of the step alone, without what happens here
        self.losses.append(taken.loss)
        if self._due(step, self.config.log_every):
            self._write(step, taken)
        if self.config.held_out and self._due(step, self.config.held_out.every):
            self._measure(step)
        if self.config.samples and self._due(step, self.config.samples.every):
            self._draw(step)
        if self._due(step, self.config.save_every) or self.over:
            self._save(step)
        self._returned = time.monotonic()

    def close(self) -> None:
        """Finish the log, and leave the ensemble that is to be kept."""
        if not self.main:
            return
        self.log.close()
        if self.config.keep == "best":
            restore(self.learner.ensemble, self.folder / "best")
            export(self.learner.ensemble, self.folder)

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.config.steps

    def _write(self, step: int, taken: Taken) -> None:
        seconds = self._seconds / len(self.losses)
        row = {"loss": sum(self.losses) / len(self.losses), "rate": taken.rate, "norm": taken.norm, "seconds": seconds}
        if self.main:
            self.log.write(step, **row)
        log.info("step %d of %d: loss %.5f, %.3f s a step", step, self.config.steps, row["loss"], seconds)
        self.losses, self._seconds = [], 0.0

    def _measure(self, step: int) -> None:
        if self.held_out is None:
            return
        learner = self.learner
        with learner.shown() as ensemble:
            denoise = learner.denoise_with(ensemble)
            at_once = self.config.batch // learner.parts  # what fits with gradients fits without
            errors = held_out_errors(self.held_out, denoise, self.measured, learner.diffusion, at_once)
            loss = float(broadcast(errors.mean().to(learner.accelerator.device)))  # all processes stop together
            if self.main and loss < self.best:
                export(ensemble, self.folder / "best")
        if self.main:
            self.log.write(step, held_out=loss, buckets=errors.mean(dim=0).tolist())
        self.without_gain = 0 if loss < self.best else self.without_gain + 1
        self.best = min(self.best, loss)
        log.info("step %d: held-out loss %.5f, best %.5f", step, loss, self.best)

    def _draw(self, step: int) -> None:
        if self.config.samples is None or not self.main:
            return
        file = self.folder / "sheets" / f"step-{step:06d}.png"
        with self.learner.shown() as ensemble, self.learner.accelerator.autocast():
            pipeline = ensemble.pipeline()
            # In a memory plan VAE and text encoders come by themselves.
            with lent(pipeline, ensemble.device) if self.config.memory is None else nullcontext():
                draw_sheet(pipeline, self.config.samples, self.config.size, file)

    def _save(self, step: int) -> None:
        if not self.main:
            return
        with self.learner.shown() as ensemble:
            export(ensemble, self.folder)
        progress = {"step": step, "best": self.best, "without_gain": self.without_gain, "losses": self.losses}
        save_checkpoint(self.folder, {**progress, "learner": self.learner.state_dict(), "identity": self.identity})
