"""Seconds and working memory of a step, with everything taking turns."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusemble.description import example_for
from diffusemble.ensembles.block_level import EnsembleDenoiser


@dataclass(frozen=True)
class Timed:
    """Medians over the rounds: seconds, and bytes of working memory where they are known."""

    seconds: float
    working: int | None


class Memory:
    """Peak working memory of one call, above what was held before it.

    CUDA: ``max_memory_allocated``. Linux CPU: the kernel's high-water mark of resident memory (VmHWM), set back before
    the call, after the allocator gave its free pages back. Elsewhere unknown.
    """

    def __init__(self, device: str) -> None:
        self.device, self.cuda = device, device.startswith("cuda")
        self.linux = device == "cpu" and Path("/proc/self/clear_refs").exists()

    def start(self) -> None:
        """Forget earlier peaks."""
        if self.cuda:
            torch.cuda.synchronize(self.device)  # what still runs is no part of the call
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        elif self.linux:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            self.before = _resident("VmRSS")

    def peak(self) -> int | None:
        """Bytes since ``start``."""
        if self.cuda:
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return _resident("VmHWM") - self.before if self.linux else None


def time_calls(calls: Mapping[str, Callable[[], Any]], repeats: int, device: str = "cpu") -> dict[str, Timed]:
    """Time every call ``repeats`` times in turn; each round begins with another one, so that none is favoured."""
    order, memory = list(calls), Memory(device)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    working: dict[str, list[int]] = {name: [] for name in order}
    with torch.inference_mode():
        for call in calls.values():
            call()  # chooses kernels
        for done in range(repeats):
            for name in order[done % len(order) :] + order[: done % len(order)]:
                memory.start()
                started = time.perf_counter()
                calls[name]()
                if memory.cuda:
                    torch.cuda.synchronize(device)
                seconds[name].append(time.perf_counter() - started)
                if (peak := memory.peak()) is not None:
                    working[name].append(peak)
    return {
        name: Timed(
            statistics.median(seconds[name]), round(statistics.median(working[name])) if working[name] else None
        )
        for name in order
    }


def seconds_of(ensembles: Mapping[str, EnsembleDenoiser], repeats: int = 7) -> dict[str, float]:
    """Median seconds of a step of one picture with guidance."""
    device = str(next(iter(ensembles.values())).device)
    timed = time_calls({name: step_of(ensemble) for name, ensemble in ensembles.items()}, repeats, device)
    return {name: one.seconds for name, one in timed.items()}


def step_of(ensemble: EnsembleDenoiser) -> Callable[[], Any]:
    """One step of one picture with guidance: the same latents twice."""
    own = ensemble.config.sample_size
    call = example_for(ensemble, ensemble.denoisers[0], (own, own) if isinstance(own, int) else own, batch=2)
    inputs, n = dict(call.inputs), len(ensemble.experts)
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].repeat(1, n, 1)
    if added := inputs.get("added_cond_kwargs"):
        inputs["added_cond_kwargs"] = {**added, "text_embeds": added["text_embeds"].repeat(1, n)}
    sample = torch.randn_like(call.sample[:1]).repeat(2, 1, 1, 1)
    return lambda: ensemble(sample, call.timestep, **inputs)


def _resident(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(key))
