"""Flags that several commands have, and those that stand for keys of another shape."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

Config = Annotated[Path | None, typer.Option("--config", "-c", help="A YAML file.")]
Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys on top of the file.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Any key of the configuration, as key=value.")]
Experts = Annotated[
    list[str] | None,
    typer.Option("--experts", "-e", help="Folder, hub id, .safetensors file, zoo:NAME or zoo:GROUP (+LORA:0.7)."),
]
Ensemble = Annotated[str | None, typer.Option(help="Folder of a saved or trained ensemble.")]
Aggregator = Annotated[str | None, typer.Option("--aggregator", "-a", help="How to combine experts, such as mean.")]
Base = Annotated[
    list[str] | None, typer.Option(help="Folder, hub id or zoo:NAME that gives .safetensors files what they lack.")
]
Level = Annotated[str | None, typer.Option(help="Where experts meet: block (default), or output.")]
MemoryBudget = Annotated[str | None, typer.Option(help="Most memory on the device, such as 8GB.")]
Lora = Annotated[
    list[str] | None, typer.Option(help="A LoRA for every expert, as style.safetensors:0.7; once for each.")
]
RefinerExperts = Annotated[
    list[str] | None, typer.Option(help="SDXL refiners that draw the last steps together; once for each.")
]
RefineFrom = Annotated[float | None, typer.Option(help="Share of the steps after which refiners go on (0.8).")]


def refiner_of(experts: list[str] | None, start: float | None, base: list[str] | None) -> dict[str, Any] | None:
    """The key ``refiner`` that the flags stand for; the bases are those of both stages.

    Raises:
        ValueError: a start without refiners.
    """
    if not experts:
        if start is not None:
            raise ValueError("--refine-from needs refiners: give --refiner-experts, once for each.")
        return None
    return {"experts": experts, **({"base": base} if base else {}), **({} if start is None else {"start": start})}


def seeds_of(seeds: list[int] | None, images: int | None) -> list[int] | None:
    """Seeds, counted up from the first if pictures are counted.

    Raises:
        ValueError: several seeds and a count.
    """
    if images is None:
        return seeds
    if seeds and len(seeds) > 1:
        raise ValueError(f"--images counts up from one --seed; got {len(seeds)} seeds. Leave --images out.")
    first = seeds[0] if seeds else 0
    return list(range(first, first + images))


def size_of(text: str | None) -> dict[str, int]:
    """Width and height of ``"512x768"``.

    Raises:
        ValueError: it looks different.
    """
    if text is None:
        return {}
    found = re.fullmatch(r"(\d+)x(\d+)", text.lower())
    if found is None:
        raise ValueError(f"--size is WIDTHxHEIGHT in pixels, such as 512x768; got {text!r}.")
    return {"width": int(found[1]), "height": int(found[2])}
