"""What controls share: their processors in a U-Net's attentions for one call, and which condition a row has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from diffusemble.controls.base import Call

Processor: TypeAlias = Callable[..., Tensor]
Condition = TypeVar("Condition")


@runtime_checkable
class RowProcessor(Protocol):
    """A processor that holds something of every row of the batch."""

    def of_rows(self, rows: Tensor) -> Processor:
        """The processor of a batch that is made of ``rows [k]`` of this one's, which may repeat."""
        ...


def processor_of_rows(processor: Processor, rows: Tensor) -> Processor:
    """``processor`` for a batch that is made of ``rows [k]`` of the batch that it was made for."""
    return processor.of_rows(rows) if isinstance(processor, RowProcessor) else processor


def cross_attentions(unet: nn.Module) -> dict[str, Any]:
    """Cross-attentions with the text, by name, in running order (down, middle, up)."""
    found = {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and name.rsplit(".", 1)[-1] == "attn2"
    }
    return {name: found[name] for name in sorted(found, key=running_order)}


def running_order(name: str) -> tuple[int, list[int]]:
    """Sorts names of a U-Net's layers as they run; it registers its middle block last."""
    stage, *rest = name.split(".")
    return ("down_blocks", "mid_block", "up_blocks").index(stage), [int(part) for part in rest if part.isdigit()]


@contextmanager
def replaced(unet: nn.Module, processors: Mapping[str, Processor]) -> Iterator[dict[str, Any]]:
    """Give the attentions of these names other processors, and their own ones back at the end.

    Yields no further arguments for the U-Net, as a control's context does.

    Raises:
        ValueError: the U-Net would recompute its activations for gradients, when it has its own processors again.
    """
    if processors and torch.is_grad_enabled() and getattr(unet, "is_gradient_checkpointing", False):
        raise ValueError(
            "This control's processors are in the U-Net for the time of a call only, and with gradient checkpointing "
            "the U-Net would run again without them. Call unet.disable_gradient_checkpointing()."
        )
    attentions: dict[str, Any] = {name: unet.get_submodule(name) for name in processors}
    own = {name: attention.processor for name, attention in attentions.items()}
    try:
        for name, processor in processors.items():
            attentions[name].set_processor(processor)
        yield {}
    finally:
        for name, processor in own.items():
            attentions[name].set_processor(processor)


def per_picture(condition: Any, kind: type[Condition], call: Call) -> list[Condition | None]:
    """One condition for every picture of a call, that is for every row, or every row of the second half if guided.

    Args:
        condition: one for all pictures, or a sequence of one per prompt; ``None`` in it leaves its pictures alone.
        kind: class of the conditions.
        call: what the U-Net is called with.

    Raises:
        ValueError: something else came, or the pictures do not divide by the conditions.
    """
    pictures = len(call.sample) // (2 if call.guided else 1)
    given = list(condition) if isinstance(condition, Sequence) else [condition] * pictures
    for one in given:
        if one is not None and not isinstance(one, kind):
            raise ValueError(
                f"This control takes a {kind.__name__} for all pictures, or a sequence of one per prompt; got a "
                f"{type(one).__name__}. Make one of the prompt's instances or picture."
            )
    if not given or pictures % len(given):
        raise ValueError(
            f"{len(given)} conditions ({kind.__name__}) came for {pictures} pictures. Give one for all pictures, or "
            f"one per prompt."
        )
    return [one for one in given for _ in range(pictures // len(given))]
