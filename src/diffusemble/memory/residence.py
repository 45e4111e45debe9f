"""Bytes of weights on the compute device, counted as they come and go."""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import Tensor


class Residence:
    """The compute device, as far as weights are concerned.

    Args:
        device: where everything computes. It may be where the weights rest: they are copied and counted all the same,
            so that a plan can be tried without an accelerator.

    Attributes:
        bytes: weights that are there now.
        peak: most that were there at once.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = self.peak = 0

    def add(self, size: int) -> None:
        """Count ``size`` bytes that came (or left, if negative)."""
        self.bytes += size
        self.peak = max(self.peak, self.bytes)

    def take(self, size: int) -> Tensor:
        """``size`` counted bytes, ``[size]``."""
        with torch.inference_mode(False):  # the bytes outlive the pass that asks for them
            flat = torch.empty(size, dtype=torch.uint8, device=self.device)
        self.add(size)
        return flat

    def give_back(self, flat: Tensor) -> None:
        """Forget bytes that ``take`` gave."""
        self.add(-flat.numel())


def give_back_free_memory() -> None:
    """Let the system have what was freed: glibc keeps the memory of the many small weights that a bundle replaced."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


def give_back_pinned_memory() -> None:
    """Let the system have pinned memory that was freed, which PyTorch keeps otherwise (older versions always do)."""
    empty = getattr(getattr(torch, "accelerator", None), "empty_host_cache", None)
    if empty is not None and torch.cuda.is_initialized():
        empty()
