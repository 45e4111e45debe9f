"""T2I-adapters in a part of the steps only, each in its own, in diffusers' unmodified pipelines.

Those compute the adapters' maps once, before the steps, and add up what several of them say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from diffusers import MultiAdapter
from torch import Tensor

from diffusemble.adapters.steps import StepCount
from diffusemble.config.adapters import T2IAdapterConfig

_MAPS = "down_intrablock_additional_residuals"


@contextmanager
def t2i_windows(pipeline: Any, adapters: Sequence[T2IAdapterConfig]) -> Iterator[None]:
    """Within it, each adapter acts from its ``start`` to its ``end`` only.

    Args:
        pipeline: one of T2I-adapters, whose part ``adapter`` they are, in this order.
        adapters: their settings; without any the pipeline may be another.
    """
    if all((one.start, one.end) == (0, 1) for one in adapters):
        yield
        return
    nets = pipeline.adapter.adapters if isinstance(pipeline.adapter, MultiAdapter) else [pipeline.adapter]
    count, said = StepCount(pipeline), {}

    def keep(number: int, net: Any, args: Any, maps: list[Tensor]) -> None:
        said[number] = [adapters[number].weight * one for one in maps]

    def choose(denoiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        place = count(args, kwargs)
        acting = [number for number, one in enumerate(adapters) if one.acts(*place)]
        if len(acting) == len(adapters):
            return None
        maps = [sum(levels) for levels in zip(*(said[number] for number in acting), strict=True)]
        batch = len(args[0] if args else kwargs["sample"])
        fitting = [one.repeat(batch // len(one), 1, 1, 1) for one in maps]
        return args, {**kwargs, _MAPS: fitting or None}

    handles = [net.register_forward_hook(partial(keep, number)) for number, net in enumerate(nets)]
    handles.append(pipeline.unet.register_forward_pre_hook(choose, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
