"""The loss on held-out pictures, same noise and timesteps every time, so that measurements compare in pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusemble.training.chance import generator_of
from diffusemble.training.corpus import Corpus
from diffusemble.training.levels import bucket_times
from diffusemble.training.objective import Batch, Denoise, Diffusion, Objective


@dataclass(frozen=True)
class HeldOut:
    """Fixed held-out batches.

    Attributes:
        corpus: the held-out pictures.
        picked: which of them are measured.
        timesteps: ``[n k]``, one in each of k buckets.
    """

    corpus: Corpus
    picked: Tensor
    timesteps: Tensor

    @classmethod
    def choose(cls, corpus: Corpus, count: int, buckets: int, diffusion: Diffusion) -> HeldOut:
        """``count`` pictures at even distances; their timesteps and noise depend on nothing else."""
        count = min(count, len(corpus))
        picked = torch.arange(count) * len(corpus) // count
        times = bucket_times(count, buckets, len(diffusion), generator_of("held-out times"))
        return cls(corpus, picked, times)

    def batches(self, size: int) -> list[Tensor]:
        """Numbers 0 ... n·k - 1 of (picture, bucket), cut into batches."""
        return list(torch.arange(self.timesteps.numel()).split(size))

    def batch(self, numbers: Tensor, device: torch.device) -> Batch:
        """The (picture, bucket) pairs of these numbers."""
        indices = self.picked[numbers // self.timesteps.shape[1]]
        latents = self.corpus.latents[indices.tolist()]
        noise = [torch.randn(latents.shape[1:], generator=generator_of("held-out noise", n)) for n in numbers.tolist()]
        inputs = self.corpus.inputs(indices, torch.zeros(len(indices), dtype=torch.bool))
        return Batch(latents, torch.stack(noise), self.timesteps.flatten()[numbers], inputs).to(device)


@torch.no_grad()
def held_out_errors(
    held_out: HeldOut, denoise: Denoise, objective: Objective, diffusion: Diffusion, size: int
) -> Float[Tensor, "n k"]:
    """Loss of every held-out picture in every bucket of timesteps, ``size`` of them at once."""
    errors = torch.zeros(held_out.timesteps.numel())
    for numbers in held_out.batches(size):
        batch = held_out.batch(numbers, diffusion.device)
        errors[numbers] = objective(denoise, batch, diffusion).float().cpu()
    return errors.view_as(held_out.timesteps)
