"""What one denoising step costs: one U-Net, N of them in sequence, and the ensemble with every aggregator.

    python benchmarks/forward.py --size sd15 --experts 3 --repeats 3

Weights are random, the sizes real. All variants take turns within one run, so that a busy machine slows all of them; a
ratio compares a variant with the N U-Nets in sequence of the same round.
"""

from __future__ import annotations

import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from cost import SIZES, Inputs, Size, count_costs, random_inputs
from diffusers import UNet2DConditionModel
from rich.console import Console
from rich.table import Table
from torch import nn

from diffusemble import EnsembleDenoiser, build_aggregator
from diffusemble.description import Cost
from diffusemble.evaluation.studies.clock import Memory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COLUMNS = ("variant", "seconds", "to N in sequence", "weights", "working memory", "parameters", "GFLOP", "in attention")


@dataclass
class Variant:
    """One thing that is timed, the modules whose weights it holds, and what was measured in every round."""

    call: Callable[[], Any]
    modules: Sequence[nn.Module]
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    working: list[int] = field(default_factory=list)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Weights, each once."""
        return list(nn.ModuleList(self.modules).parameters())

    def run(self, memory: Memory, device: str) -> None:
        """One timed call."""
        memory.start()
        started, computed = time.perf_counter(), time.process_time()
        self.call()
        wait(device)
        self.seconds.append(time.perf_counter() - started)
        self.cpu_seconds.append(time.process_time() - computed)
        if (peak := memory.peak()) is not None:
            self.working.append(peak)


def wait(device: str) -> None:
    """Until everything that ``device`` was told to compute is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()


def build_unets(size: Size, experts: int, device: str, dtype: torch.dtype) -> list[nn.Module]:
    """``experts`` U-Nets that share no memory: shared weights could stay in a cache and flatter the lockstep."""
    torch.manual_seed(0)
    with torch.device(device):
        first = UNet2DConditionModel(**size.config)
    first = first.to(dtype).eval().requires_grad_(False)
    return [first, *(copy.deepcopy(first) for _ in range(experts - 1))]


def build_variants(size: Size, unets: Sequence[nn.Module], inputs: Inputs, own: Inputs) -> dict[str, Variant]:
    """What is timed, by the names of ``count_costs``; ``inputs`` are the ensemble's, ``own`` those of one U-Net."""
    built = {
        "one U-Net": Variant(lambda: unets[0](**own), unets[:1]),
        f"{len(unets)} in sequence": Variant(lambda: [unet(**own) for unet in unets], unets),
    }
    named: dict[str, dict[str, Any]] = {"mean": {}, **{f"SABW {preset}": {"preset": preset} for preset in size.presets}}
    for name, options in named.items():
        with inputs["sample"].device:
            aggregator = build_aggregator("sabw" if options else "mean", unets, **options)
        ensemble = EnsembleDenoiser(unets, aggregator.to(inputs["sample"].dtype)).eval()
        built[f"ensemble, {name}"] = Variant(lambda e=ensemble: e(**inputs), [*unets, aggregator])
    return built


def measure(variants: Mapping[str, Variant], repeats: int, device: str, console: Console) -> None:
    """Time every variant ``repeats`` times in turn; each round begins with another one, so that none is favoured."""
    order, memory = list(variants), Memory(device)
    with torch.inference_mode():
        for variant in list(variants.values())[: 1 if device == "cpu" else None]:
            variant.call()  # chooses kernels, which takes long on accelerators; a CPU only has to wake up
        for done in range(repeats):
            for name in order[done % len(order) :] + order[: done % len(order)]:
                variants[name].run(memory, device)
                console.print(f"round {done + 1} of {repeats}: {name}: {variants[name].seconds[-1]:.3f} s", style="dim")


def summarise(variants: Mapping[str, Variant], costs: Mapping[str, Cost], batch: int) -> list[dict[str, Any]]:
    """One flat record per variant; times and ratios are medians over the rounds, with the smallest and the largest."""
    sequence = next(variant for name, variant in variants.items() if name.endswith("in sequence"))
    records = []
    for name, variant in variants.items():
        ratios = [mine / all_n for mine, all_n in zip(variant.seconds, sequence.seconds, strict=True)]
        records.append(
            {
                "variant": name,
                "seconds": statistics.median(variant.seconds),
                "seconds_of_every_round": variant.seconds,
                "cpu_seconds_of_every_round": variant.cpu_seconds,
                "ratio": statistics.median(ratios),
                "ratio_range": [min(ratios), max(ratios)],
                "weight_bytes": sum(weight.numel() * weight.element_size() for weight in variant.parameters),
                "working_bytes": max(variant.working, default=None),
                "parameters": sum(weight.numel() for weight in variant.parameters),
                "flops": batch * costs[name].total,
                "attention_flops": batch * costs[name].attention,
            }
        )
    return records


def cells(record: Mapping[str, Any]) -> tuple[str, ...]:
    """A record as text, in the order of ``COLUMNS``."""
    low, high = record["ratio_range"]
    working = record["working_bytes"]
    return (
        record["variant"],
        f"{record['seconds']:.3f}",
        f"{record['ratio']:.3f} ({low:.3f}–{high:.3f})",
        f"{record['weight_bytes'] / 2**30:.2f} GiB",
        "unknown" if working is None else f"{working / 2**20:.0f} MiB",
        f"{record['parameters'] / 1e6:.1f} M",
        f"{record['flops'] / 1e9:.1f}",
        f"{record['attention_flops'] / 1e9:.1f}",
    )


def markdown(title: str, records: Sequence[Mapping[str, Any]]) -> str:
    """A section for docs/benchmarks.md."""
    lines = [COLUMNS, ("---", *("---:" for _ in COLUMNS[1:])), *map(cells, records)]
    return "\n".join([f"### {title}", "", *("| " + " | ".join(line) + " |" for line in lines), ""])


def processor(device: str) -> str:
    """Name of what computes."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def main(
    size: Annotated[Literal["tiny", "zoo", "sd15", "sdxl"], typer.Option(help="shape of the U-Nets")] = "zoo",
    experts: Annotated[int, typer.Option(min=1, help="how many U-Nets")] = 3,
    batch: Annotated[int, typer.Option(min=1, help="images; guidance doubles them")] = 1,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="number type")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, mps")] = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="rounds; medians are reported")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's choice by default")] = None,
    output: Annotated[Path | None, typer.Option("--json", help="write all numbers here")] = None,
    table: Annotated[Path | None, typer.Option("--markdown", help="append a table here")] = None,
) -> None:
    """Time one denoising step."""
    if threads is not None:
        torch.set_num_threads(threads)
    console, chosen, number = Console(width=None if sys.stdout.isatty() else 140), SIZES[size], DTYPES[dtype]
    costs = count_costs(chosen, experts)
    unets = build_unets(chosen, experts, device, number)
    inputs, own = (random_inputs(chosen, n, device, number, batch) for n in (experts, 1))
    variants = build_variants(chosen, unets, inputs, own)
    measure(variants, repeats, device, console)
    records = summarise(variants, costs, batch)
    title = f"{size}, {experts} experts, batch {batch}, {dtype}, {processor(device)}, torch {torch.__version__}"
    report(console, title, records)
    if output is not None:
        output.write_text(json.dumps({"title": title, "repeats": repeats, "variants": records}, indent=2) + "\n")
    if table is not None:
        with table.open("a") as file:
            file.write("\n" + markdown(title, records))


def report(console: Console, title: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Print the table."""
    shown = Table(title=title)
    for number, column in enumerate(COLUMNS):
        shown.add_column(column, justify="right" if number else "left")
    for record in records:
        shown.add_row(*cells(record))
    console.print(shown)


if __name__ == "__main__":
    typer.run(main)
