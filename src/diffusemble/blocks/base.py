"""One contract around any denoiser: a sequence of named blocks with a small state between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor, nn

from diffusemble.aggregators.base import Sizes

Inputs = Mapping[str, Any]
"""What a denoiser's ``forward`` accepts beside the sample and the timestep, by its own argument names."""


@dataclass(frozen=True)
class Flow:
    """State of one denoiser between two blocks.

    Attributes:
        hidden: feature map ``[b c h w]`` that enters the next block.
        skips: feature maps kept for later blocks, oldest first.
        time: time embedding ``[b e]`` of this denoiser.
        text: text embedding ``[b s d]`` of this denoiser, without image-prompt tokens.
        extra: whatever else the architecture's blocks need.
    """

    hidden: Tensor
    skips: tuple[Tensor, ...]
    time: Tensor
    text: Tensor
    extra: Any


class Blocks(Protocol):
    """A denoiser, cut into blocks. ``run_through`` over all of them equals the denoiser's ``forward`` bit for bit."""

    denoiser: nn.Module
    names: tuple[str, ...]
    sizes: Sizes

    def open(self, sample: Tensor, timestep: Any, inputs: Inputs) -> Flow:
        """Everything before the first block: time and text embeddings, masks."""
        ...

    def run(self, name: str, flow: Flow) -> Tensor:
        """Output ``[b c h w]`` of one block; ``flow`` is left as it is."""
        ...

    def join(self, name: str, flow: Flow, hidden: Tensor) -> Flow:
        """State after block ``name`` whose (possibly aggregated) output is ``hidden``: residuals added, skips kept."""
        ...

    def close(self, hidden: Tensor) -> Tensor:
        """Everything after the last block: output ``[b c h w]`` of the denoiser."""
        ...

    def active(self, inputs: Inputs) -> AbstractContextManager[None]:
        """What must hold during a whole pass, such as the LoRA scale."""
        ...


def run_through(blocks: Blocks, sample: Tensor, timestep: Any, inputs: Inputs) -> Tensor:
    """One denoiser, block by block: the same numbers as ``denoiser(sample, timestep, **inputs)``."""
    with blocks.active(inputs):
        return finish(blocks, blocks.open(sample, timestep, inputs))


def finish(blocks: Blocks, flow: Flow) -> Tensor:
    """Output of one denoiser from its opened ``flow`` on: all its blocks, without anybody else."""
    return run_span(blocks, flow, blocks.names).hidden


def run_span(blocks: Blocks, flow: Flow, names: Sequence[str]) -> Flow:
    """State after consecutive blocks ``names`` of one denoiser; after the last block of all, its hidden state is the
    denoiser's output.
    """
    for name in names:
        flow = blocks.join(name, flow, blocks.run(name, flow))
    return replace(flow, hidden=blocks.close(flow.hidden)) if names[-1] == blocks.names[-1] else flow
