"""How bytes come to the compute device: at once, or on a stream of their own while it computes."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from diffusemble.memory.plan import BUFFERS


class Lane(Protocol):
    """Copies into numbered buffers of the compute device."""

    def bring(self, number: int, source: Tensor, target: Tensor) -> None:
        """Begin to copy ``source`` to ``target``, which lies in buffer ``number``, once nothing computes there."""
        ...

    def arrive(self, number: int) -> None:
        """Let what is computed from now on wait for the copy into buffer ``number``."""
        ...

    def done(self, number: int) -> None:
        """What was computed up to now was the last that reads buffer ``number``."""
        ...

    def settle(self) -> None:
        """Let what is computed from now on wait for every copy."""
        ...


class DirectLane:
    """Copies at once."""

    def bring(self, number: int, source: Tensor, target: Tensor) -> None:
        """Copy."""
        target.copy_(source)

    def arrive(self, number: int) -> None:
        """Nothing to wait for."""

    def done(self, number: int) -> None:
        """Nothing to remember."""

    def settle(self) -> None:
        """Nothing to wait for."""


class StreamedLane:
    """Copies from pinned memory on a CUDA stream of its own, ordered against the computation by events."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.arrived = [torch.cuda.Event() for _ in range(BUFFERS)]
        self.free = [torch.cuda.Event() for _ in range(BUFFERS)]

    def bring(self, number: int, source: Tensor, target: Tensor) -> None:
        """Copy behind the last computation on this buffer, beside all others."""
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(self.free[number])
            target.copy_(source, non_blocking=True)
            self.arrived[number].record(self.stream)

    def arrive(self, number: int) -> None:
        """Make the computing stream wait."""
        torch.cuda.current_stream(self.device).wait_event(self.arrived[number])

    def done(self, number: int) -> None:
        """Mark the place in the computing stream."""
        self.free[number].record(torch.cuda.current_stream(self.device))

    def settle(self) -> None:
        """Make the computing stream wait for the whole other one, also for a copy that was interrupted."""
        torch.cuda.current_stream(self.device).wait_stream(self.stream)


def lane_to(device: torch.device) -> Lane:
    """The best lane there is to ``device``."""
    return StreamedLane(device) if device.type == "cuda" else DirectLane()
