"""Every network of a drawing, by when it computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from diffusemble.memory.company import Drawers


@dataclass(frozen=True)
class Networks:
    """What draws beside the denoisers; shared networks once.

    Attributes:
        ensemble: the denoisers.
        encoders: text and image encoders, which read before the first step, and checkers.
        controls: ControlNets, which compute in every step before the denoisers.
        vaes: what decodes.
    """

    ensemble: Drawers
    encoders: tuple[nn.Module, ...] = ()
    controls: tuple[nn.Module, ...] = ()
    vaes: tuple[nn.Module, ...] = ()


def networks_of(ensemble: Drawers, pipelines: Iterable[Any] = ()) -> Networks:
    """Every network that pipelines around an ensemble, or around some of its experts, draw with.

    Args:
        ensemble: what draws.
        pipelines: around it; without any, it is drawn with by the parts of its experts alone.
    """
    kinds: dict[str, dict[int, nn.Module]] = {"encoders": {}, "controls": {}, "vaes": {}}

    def put(kind: str, module: nn.Module) -> None:
        # By its first weight: what stands around an ensemble may be a second object around the same network.
        weight = next(module.parameters(), None)
        if weight is not None and not any(id(weight) in known for known in kinds.values()):
            kinds[kind][id(weight)] = module

    for number, expert in enumerate(ensemble.experts):
        for name, part in expert.components.items():
            for module in _single(part) if number == 0 or name.startswith("text_encoder") else ():
                put("vaes" if name == "vae" else "encoders", module)
    denoisers = {id(weight) for weight in ensemble.parameters()}
    for pipeline in pipelines:
        for name, part in pipeline.components.items():
            for module in _single(part):
                # Z-Image's ControlNet has weights of the first expert among its own.
                if name == "controlnet" or id(next(module.parameters(), None)) not in denoisers:
                    put({"vae": "vaes", "controlnet": "controls"}.get(name, "encoders"), module)
    return Networks(ensemble, *(tuple(found.values()) for found in kinds.values()))


def _single(part: Any) -> Iterator[nn.Module]:
    """The networks of one part of a pipeline: several ControlNets, or all experts' text encoders, stand as one."""
    for name in ("nets", "encoders"):
        if isinstance(getattr(part, name, None), nn.ModuleList):
            yield from getattr(part, name)
            return
    if isinstance(part, nn.Module):
        yield part
