"""Training in little memory: an expert's block keeps nothing for the backward pass and runs again there.

What stays is what passes from block to block, which all experts share, and what the aggregator keeps for itself.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from diffusemble.blocks.base import Blocks, Feature, Flow
from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.memory.staging import StagedBlocks, inputs_of


def recompute_blocks(ensemble: EnsembleDenoiser) -> None:
    """Let every block of every expert run again in the backward pass. Gradients stay what they are, but for the
    order in which they are added up.

    Works on an ensemble that a memory plan has placed, too: then weights come for both passes. Weights in a block that
    learn (adapters) stay, and get their gradients. Blocks that read text or time that learns are left alone.
    """
    if not all(isinstance(blocks, RecomputedBlocks) for blocks in ensemble.blocks):
        ensemble.blocks[:] = [cast(Blocks, RecomputedBlocks(blocks)) for blocks in ensemble.blocks]


class RecomputedBlocks:
    """A block schedule that keeps only the state before each block."""

    def __init__(self, inner: Blocks) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)  # while it is being unpickled
        return getattr(self.inner, name)

    def run(self, name: str, flow: Flow) -> Feature:
        """Output of block ``name`` on ``flow``."""
        tensors = inputs_of(flow)
        own = {id(weight): weight for part in self.inner.modules(name) for weight in part.parameters()}
        learned = tuple(weight for weight in own.values() if weight.requires_grad)
        wanted = any(tensor.requires_grad for tensor in (*tensors, *learned))
        if not torch.is_grad_enabled() or not wanted or flow.time.requires_grad or flow.text.requires_grad:
            return self.inner.run(name, flow)
        block = _Block(self.inner, name, flow, learned, _autocast(flow.hidden))
        image, tokens = _Again.apply(block, *tensors, *learned)
        return Feature(image, tokens)


@dataclass(frozen=True)
class _Block:
    """One run of a block: where, which, on what (but for the tensors that may want gradients), with which weights that
    learn, in which precision.
    """

    blocks: Blocks
    name: str
    flow: Flow
    learned: tuple[Tensor, ...]
    precision: AbstractContextManager[Any]

    def run(self, tensors: tuple[Tensor, ...], raw: bool) -> tuple[Tensor, Tensor | None]:
        hidden, *rest = tensors
        tokens = None if self.flow.tokens is None else rest.pop(0)
        flow = replace(self.flow, hidden=hidden, tokens=tokens, skips=tuple(rest))
        staged = isinstance(self.blocks, StagedBlocks) and raw
        feature = (self.blocks.inner if staged else self.blocks).run(self.name, flow)  # type: ignore[attr-defined]
        return feature.map, feature.tokens

    def there(self) -> AbstractContextManager[None]:
        """The weights, for longer than one run."""
        return self.blocks.there(self.name) if isinstance(self.blocks, StagedBlocks) else nullcontext()


class _Again(torch.autograd.Function):
    """Runs a block without keeping anything but its inputs."""

    @staticmethod
    def forward(ctx: Any, block: _Block, *given: Tensor) -> tuple[Tensor, Tensor | None]:
        tensors = given[: len(given) - len(block.learned)]
        ctx.block = block
        ctx.save_for_backward(*tensors)
        return block.run(tensors, raw=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        block: _Block = ctx.block
        inputs = tuple(tensor.detach().requires_grad_(tensor.requires_grad) for tensor in ctx.saved_tensors)
        wanted = [tensor for tensor in (*inputs, *block.learned) if tensor.requires_grad]
        # The weights must stay until the gradients are there: what autograd keeps are views on them.
        with block.there():
            # What is kept here is gone in a moment; hooks that follow what a step keeps have nothing to do with it.
            with torch.enable_grad(), block.precision, saved_tensors_hooks(_same, _same):
                outputs = block.run(inputs, raw=True)
            pairs = [
                (output, gradient)
                for output, gradient in zip(outputs, gradients, strict=True)
                if output is not None and output.requires_grad and gradient is not None
            ]
            found = iter(
                torch.autograd.grad(
                    [output for output, _ in pairs], wanted, [gradient for _, gradient in pairs], allow_unused=True
                )
            )
        return (None, *(next(found) if tensor.requires_grad else None for tensor in (*inputs, *block.learned)))


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _autocast(like: Tensor) -> AbstractContextManager[Any]:
    """The precision in force now, for later."""
    kind = like.device.type
    if kind == "meta":
        return nullcontext()
    return torch.autocast(
        kind,
        dtype=torch.get_autocast_dtype(kind),
        enabled=torch.is_autocast_enabled(kind),
        cache_enabled=torch.is_autocast_cache_enabled(),
    )
