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
class Call:
    """One call of a denoiser's ``forward``, in terms that all families share.

    Attributes:
        sample: noisy latents ``[b c h w]``; packed ones (FLUX) as a view on their grid.
        timestep: as ``forward`` takes it.
        inputs: every other argument of ``forward``, by its own name.
    """

    sample: Tensor
    timestep: Any
    inputs: Inputs


@dataclass(frozen=True)
class Feature:
    """Output of one block.

    Attributes:
        map: image feature ``[b c h w]``.
        tokens: text tokens ``[b s d]``, where the block changed them (joint attention), else None.
    """

    map: Tensor
    tokens: Tensor | None = None


@dataclass(frozen=True)
class Flow:
    """State of one denoiser between two blocks.

    Attributes:
        hidden: feature map ``[b c h w]`` that enters the next block.
        skips: feature maps kept for later blocks, oldest first.
        time: time embedding ``[b e]`` of this denoiser, with everything that was added to it (pooled text, sizes).
        text: text embedding ``[b s d]`` of this denoiser as its first block reads it, without image-prompt tokens.
        extra: whatever else the architecture's blocks need.
        tokens: text tokens ``[b s d]`` that enter the next block, where blocks change them, else None.
        mask: which text tokens belong to the prompt, ``[b s]``, where others only fill it up; None: all.
    """

    hidden: Tensor
    skips: tuple[Tensor, ...]
    time: Tensor
    text: Tensor
    extra: Any
    tokens: Tensor | None = None
    mask: Tensor | None = None


class Blocks(Protocol):
    """A denoiser, cut into blocks. ``run_through`` over all of them equals the denoiser's ``forward`` bit for bit.

    Attributes:
        denoiser: the model itself; a schedule owns no weights.
        names: its blocks in running order, one aggregation point after each.
        sizes: channels of every point, and widths of ``Flow.time`` and ``Flow.text``.
        time_unit, time_origin: a timestep of ``forward``, times the one plus the other, is in the sampler's unit (0 to
            1000).
    """

    denoiser: nn.Module
    names: tuple[str, ...]
    sizes: Sizes
    time_unit: float
    time_origin: float

    def read(self, arguments: Inputs) -> Call:
        """The call that the arguments of ``forward``, by name, make."""
        ...

    def split(self, inputs: Inputs, n: int) -> tuple[Inputs, ...]:
        """One set of inputs per expert: what is packed (text, pooled text, ids) is cut, the rest is shared."""
        ...

    def write(self, prediction: Tensor) -> Any:
        """The record that ``forward`` returns, for a prediction ``[b c h w]``."""
        ...

    def modules(self, name: str) -> tuple[nn.Module, ...]:
        """The modules whose weights block ``name`` uses; those of no block belong to ``open`` and ``close``."""
        ...

    def open(self, sample: Tensor, timestep: Any, inputs: Inputs) -> Flow:
        """Everything before the first block: time and text embeddings, masks."""
        ...

    def run(self, name: str, flow: Flow) -> Feature:
        """Output of one block; ``flow`` is left as it is."""
        ...

    def join(self, name: str, flow: Flow, feature: Feature) -> Flow:
        """State after block ``name`` whose (possibly aggregated) output is ``feature``: residuals added, skips kept."""
        ...

    def close(self, flow: Flow) -> Tensor:
        """Everything after the last block: prediction ``[b c h w]`` of the denoiser."""
        ...

    def active(self, inputs: Inputs) -> AbstractContextManager[None]:
        """What must hold during a whole pass, such as the LoRA scale."""
        ...


def run_through(blocks: Blocks, sample: Tensor, timestep: Any, inputs: Inputs) -> Tensor:
    """One denoiser, block by block: the same numbers as its ``forward``, ``[b c h w]``."""
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
    return replace(flow, hidden=blocks.close(flow)) if names[-1] == blocks.names[-1] else flow
