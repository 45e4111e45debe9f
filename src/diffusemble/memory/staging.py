"""Block schedules whose weights are there when their turn comes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusemble.aggregators.base import Combiner
from diffusemble.aggregators.router import Router
from diffusemble.blocks.base import Blocks, Feature, Flow
from diffusemble.memory.bundle import Bundle
from diffusemble.memory.conveyor import Conveyor

Turn = tuple[int, str]
"""Which expert runs, and which of its blocks."""


@dataclass(frozen=True)
class Scene:
    """What is needed to run one block: its bundle, whether that stays, and the bundle that comes next."""

    bundle: Bundle
    stays: bool
    following: Bundle | None = None


class StagedBlocks:
    """A block schedule that has the weights of every block brought before it runs, and leaves the rest as it is.

    Args:
        inner: the schedule itself.
        conveyor: brings the weights.
        scenes: what is needed for a block, by its name; a block without an entry has its weights there.
    """

    def __init__(self, inner: Blocks, conveyor: Conveyor, scenes: Mapping[str, Scene]) -> None:
        self.inner, self.conveyor, self.scenes = inner, conveyor, scenes

    def __getattr__(self, name: str) -> Any:
        # Only `run` differs; whatever else a family's schedule knows is its own.
        if name == "inner":
            raise AttributeError(name)  # while it is being unpickled
        return getattr(self.inner, name)

    def run(self, name: str, flow: Flow) -> Feature:
        """Output of block ``name`` on ``flow``.

        Raises:
            ValueError: a gradient would need weights that are gone by then.
        """
        if name in self.scenes and torch.is_grad_enabled():
            weights = [weight for part in self.inner.modules(name) for weight in part.parameters()]
            if any(tensor.requires_grad for tensor in (*inputs_of(flow), flow.time, flow.text, *weights)):
                raise ValueError(
                    f"Block {name} should give gradients, but its weights leave the device after it. Call "
                    f"recompute_blocks(ensemble) once it is placed, or draw under torch.no_grad(). Blocks whose own "
                    f"weights learn must stay."
                )
        with self.there(name):
            return self.inner.run(name, flow)

    def there(self, name: str) -> AbstractContextManager[None]:
        """The weights of block ``name`` on the compute device."""
        scene = self.scenes.get(name)
        if scene is None:
            return nullcontext()
        if scene.stays:
            return self.conveyor.decoding(scene.bundle)
        return self.conveyor.used(scene.bundle, scene.following)


def inputs_of(flow: Flow) -> tuple[Tensor, ...]:
    """What changes from block to block and may want a gradient."""
    return (flow.hidden, *([] if flow.tokens is None else [flow.tokens]), *flow.skips)


def followers(combiner: Combiner, names: tuple[str, ...], experts: int, around: bool = True) -> dict[Turn, Turn | None]:
    """Which turn comes after which; after the last the first of the next step, or none if not ``around``.

    In lockstep every expert runs a block before anybody runs the next one. Where nothing is shared on the way one
    expert runs after the other. With a router the same expert is expected to go on; where it does not, its blocks are
    brought when they are asked for.
    """
    alone = [[(expert, name) for name in names] for expert in range(experts)]
    if in_lockstep(combiner, names):
        cycles = [[(expert, name) for name in names for expert in range(experts)]]
    elif isinstance(combiner, Router):
        cycles = alone
    else:
        cycles = [[turn for turns in alone for turn in turns]]
    ends = [cycle[0] if around else None for cycle in cycles]
    return {
        turn: after
        for cycle, end in zip(cycles, ends, strict=True)
        for turn, after in zip(cycle, [*cycle[1:], end], strict=True)
    }


def in_lockstep(combiner: Combiner, names: tuple[str, ...]) -> bool:
    """Whether every expert runs a block before anybody runs the next one."""
    return not isinstance(combiner, Router) and combiner.points != {len(names) - 1}


def scenes(
    denoisers: list[nn.Module], bundles: Mapping[tuple[int, str], Scene], order: Mapping[Turn, Turn | None]
) -> list[dict[str, Scene]]:
    """For every expert, what its blocks need; ``bundles`` is by ``id`` of the denoiser and name of the block.

    What follows a block is the next bundle in running order that does not stay anyway.
    """

    def at(turn: Turn) -> Scene | None:
        return bundles.get((id(denoisers[turn[0]]), turn[1]))

    def after(turn: Turn) -> Bundle | None:
        own, following = at(turn), order[turn]
        while following is not None and following != turn:
            scene = at(following)
            if scene is not None and not scene.stays and (own is None or scene.bundle is not own.bundle):
                return scene.bundle
            following = order[following]
        return None

    table: list[dict[str, Scene]] = [{} for _ in denoisers]
    for turn in order:
        scene = at(turn)
        if scene is not None:
            table[turn[0]][turn[1]] = scene if scene.stays else Scene(scene.bundle, False, after(turn))
    return table
