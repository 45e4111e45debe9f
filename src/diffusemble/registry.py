"""Names of methods and where they live, so that listing them imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One row of a table: ``target`` is ``"module:Class"``; ``title`` and ``paper`` are for people."""

    target: str
    title: str
    paper: str = ""

    def load(self) -> Any:
        """Import the class."""
        module, name = self.target.split(":")
        return getattr(import_module(module), name)


AGGREGATORS: Mapping[str, Entry] = {
    "sabw": Entry(
        "diffusemble.aggregators.sabw:SABW", "Spatial-aware block-wise feature aggregation", "AFA, ICLR 2025"
    ),
    "mean": Entry("diffusemble.aggregators.mean:Mean", "Block-wise mean of the features", "AFA, ICLR 2025, table 3"),
}

BLOCKS: Mapping[str, Entry] = {
    "UNet2DConditionModel": Entry("diffusemble.blocks.unet:UNetBlocks", "SD 1.x, SD 2.x, SDXL"),
}

SCHEDULERS: Mapping[str, Entry] = {
    "ddim": Entry("diffusers:DDIMScheduler", "DDIM", "arXiv 2010.02502"),
    "pndm": Entry("diffusers:PNDMScheduler", "PNDM", "arXiv 2202.09778"),
    "dpm++": Entry("diffusers:DPMSolverMultistepScheduler", "DPM-Solver++ (2M)", "arXiv 2211.01095"),
    "euler": Entry("diffusers:EulerDiscreteScheduler", "Euler", "arXiv 2206.00364"),
}


def lookup(table: Mapping[str, Entry], name: str, what: str) -> Any:
    """Class behind ``name``.

    Raises:
        ValueError: the table has no such name; the message lists those it has.
    """
    if name not in table:
        raise ValueError(f"Unknown {what} {name!r}. Choose one of: {', '.join(table)}.")
    return table[name].load()
