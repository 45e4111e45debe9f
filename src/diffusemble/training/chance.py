"""All randomness of training, each draw from its own name: nothing depends on what was drawn before.

So a run that was killed goes on with exactly the numbers of one that was not, and any number of processes draw alike.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def seed_of(*name: object) -> int:
    """A 63-bit seed that depends on ``name`` alone."""
    digest = hashlib.sha256("/".join(map(str, name)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_of(*name: object) -> torch.Generator:
    """A CPU generator that depends on ``name`` alone."""
    return torch.Generator().manual_seed(seed_of(*name))


@dataclass(frozen=True)
class Draw:
    """Everything random about one optimiser step, for the whole batch.

    Attributes:
        indices: which samples, ``[b]``.
        dropped: whose prompt is replaced by the empty one, ``[b]``, bool.
        timesteps: ``[b]``.
        noise: ``[b c h w]``.
    """

    indices: Tensor
    dropped: Tensor
    timesteps: Tensor
    noise: Tensor

    def part(self, number: int, parts: int) -> Draw:
        """Rows of part ``number`` of ``parts`` equal ones, every ``parts``-th row."""
        return Draw(*(field[number::parts] for field in (self.indices, self.dropped, self.timesteps, self.noise)))


@dataclass(frozen=True)
class Chance:
    """What steps are drawn from.

    Attributes:
        seed: of the run.
        batch: b, samples per step.
        count: samples in the data set.
        timesteps: those that are drawn.
        drop: probability that a sample loses its prompt.
        probabilities: of every point of the schedule, ``[t]``; None: all alike.
    """

    seed: int
    batch: int
    count: int
    timesteps: range
    drop: float
    probabilities: Tensor | None = None

    def draw(self, step: int, shape: tuple[int, ...]) -> Draw:
        """The draw of one step; ``shape`` is that of one sample's latents ``(c, h, w)``."""
        generator = generator_of(self.seed, "step", step)
        return Draw(
            indices=self.indices(step),
            dropped=torch.rand(self.batch, generator=generator) < self.drop,
            timesteps=self._times(generator),
            noise=torch.randn(self.batch, *shape, generator=generator),
        )

    def indices(self, step: int) -> Tensor:
        """Batch number ``step`` of an endless sequence of shuffled passes over all samples."""
        parts, position, end = [], step * self.batch, (step + 1) * self.batch
        while position < end:
            epoch, start = divmod(position, self.count)
            parts.append(_order(self.seed, epoch, self.count)[start : start + end - position])
            position += len(parts[-1])
        return torch.cat(parts)

    def _times(self, generator: torch.Generator) -> Tensor:
        first, stop = self.timesteps.start, self.timesteps.stop
        if self.probabilities is None:
            return torch.randint(first, stop, (self.batch,), generator=generator)
        chosen = self.probabilities[first:stop]
        return first + torch.multinomial(chosen, self.batch, replacement=True, generator=generator)


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=generator_of(seed, "epoch", epoch))
