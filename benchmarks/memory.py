"""What memory plans take: planned and counted weights, and on an accelerator peak memory and seconds a step.

    python benchmarks/memory.py --size sd15 --size sdxl --experts 2 --experts 3 --experts 6
    python benchmarks/memory.py --size sdxl --experts 3 --budget 8GB --budget 12GB

Without a budget fewer and fewer denoisers stay. Within a budget there are two plans: one of whole denoisers that stay,
one of as many blocks as it allows. On the meta device (the default) weights have sizes but no numbers, so that nothing
is too large: what passes a stage is counted, working memory is estimated. With ``--device cuda`` (or ``cpu``, which
saves nothing there, but shows that it runs) the same plans run with random weights.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from architectures import ARCHITECTURES
from diffusers import ControlNetModel
from forward import DTYPES, processor, wait
from rich.console import Console

from diffusemble import EnsembleDenoiser, build_aggregator
from diffusemble.blocks.base import Call
from diffusemble.blocks.example import LONG_PROMPT, example
from diffusemble.config.memory import MemoryConfig
from diffusemble.config.units import format_bytes, parse_bytes
from diffusemble.evaluation.studies.clock import Memory
from diffusemble.memory.measure import decoding_type, measure_weights
from diffusemble.memory.networks import networks_of
from diffusemble.memory.place import Placement
from diffusemble.memory.plan import Plan, make_plan
from diffusemble.memory.plan import plans as all_plans
from diffusemble.memory.working import measure_working

COLUMNS = ("experts", "denoisers that stay", "parts", "copied a step", "weights, planned", "weights, counted")
COLUMNS += ("estimated peak",)
MEASURED = ("peak measured", "seconds a step", "to all in memory")


@dataclass(frozen=True)
class Row:
    """One plan: what was counted, and what was measured where something was."""

    plan: Plan
    counted: int
    copied: int
    peak: int | None = None
    seconds: float | None = None


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What is made meanwhile has this type from the first, so that nothing is there as float32 before."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build(size: str, n: int, dtype: torch.dtype, device: str) -> EnsembleDenoiser:
    """``n`` experts that share only their VAE, and SABW at its published size."""
    with torch.device(device), default_dtype(dtype):
        experts = ARCHITECTURES[size].experts(n, dtype)
        aggregator = build_aggregator("sabw", [expert.denoiser for expert in experts]).to(dtype)
    return EnsembleDenoiser(experts, aggregator).eval()


def control(ensemble: EnsembleDenoiser) -> Any:
    """A ControlNet for the experts, where a memory plan looks for one: among the parts of a pipeline."""
    with torch.device("meta"):
        net = ControlNetModel.from_unet(ensemble.denoisers[0], load_weights_from_unet=False)
    return SimpleNamespace(components={"controlnet": torch.nn.Module.to(net, ensemble.dtype)})


def plans(
    ensemble: EnsembleDenoiser, pipelines: Sequence[Any], latents: int, budgets: Sequence[str]
) -> Iterator[tuple[str, Plan]]:
    """Everything in memory; then encoders and VAE as visitors, and fewer and fewer denoisers that stay; at last no
    ControlNet either. Or what fits into each budget.
    """
    n = len(ensemble.experts)
    networks = networks_of(ensemble, pipelines)
    sizes = measure_weights(networks), measure_working(networks, (latents, latents), batch=1, guided=True)
    yield "none" if budgets else "", make_plan(*sizes, MemoryConfig(parts="stay"))
    if budgets:
        there = list(all_plans(*sizes, MemoryConfig(vae="whole")))
        wholes = [plan for plan in there if all(len(set(blocks)) == 1 for blocks in plan.stays)]
        for budget, some in product(budgets, (wholes, there)):
            yield from [(budget, plan) for plan in some if plan.peak <= parse_bytes(budget)][:1]
        return
    for resident in range(n, -1, -1):
        yield "", make_plan(*sizes, MemoryConfig(resident=resident, parts="visit"))
    if pipelines:
        yield "", make_plan(*sizes, MemoryConfig(resident=0, parts="visit", controls="visit"))


def count(ensemble: EnsembleDenoiser, pipelines: Sequence[Any], plan: Plan) -> Row:
    """Pass all stages without numbers: every text encoder, every block, the VAE."""
    with Placement(ensemble, plan, "meta", pipelines) as placed:
        for number in range(len(placed.visitors.groups)):
            placed.visitors.open(number)
        placed.visitors.leave()
        steps = []
        for _ in range(2):  # only from the second step on the first block has come beforehand
            for point, blocks in product(ensemble.points, ensemble.blocks):
                with blocks.there(point):  # type: ignore[attr-defined]
                    pass
            steps.append(placed.conveyor.brought)
    return Row(plan, placed.residence.peak, steps[1] - steps[0])


def random_call(denoiser: Any, latents: int) -> Call:
    """A call of one denoiser for a picture with guidance, of random latents and text."""

    def randomised(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: randomised(one, key) for key, one in value.items()}
        if isinstance(value, list):
            return [randomised(one, name) for one in value]
        places = name.endswith("ids") or not isinstance(value, torch.Tensor) or value.ndim < 2
        return value if places else torch.randn_like(value)

    call = example(denoiser, (latents, latents), batch=2)
    return Call(torch.randn_like(call.sample), call.timestep, randomised(call.inputs))


def run(ensemble: EnsembleDenoiser, plan: Plan, latents: int, device: str, steps: int) -> Row:
    """Read a prompt, denoise one picture with guidance, and decode it.

    On a CPU weights rest in the same memory as they compute in. Its peak is therefore the weights that are there once
    everything is placed, and what the process took from then on.
    """
    parts, memory, seconds = networks_of(ensemble), Memory(device), list[float]()
    with Placement(ensemble, plan, device) as placed, torch.inference_mode():
        call = random_call(ensemble.denoisers[0], latents)
        memory.start()
        there = memory.before if memory.cuda else placed.residence.bytes
        for encoder in parts.encoders:
            tokens = min(getattr(encoder.config, "max_position_embeddings", LONG_PROMPT), LONG_PROMPT)
            encoder(torch.zeros(2, tokens, dtype=torch.long, device=device))
        for _ in range(steps):
            before = placed.conveyor.brought
            wait(device)
            started = time.perf_counter()
            placed.visitors.draw()
            ensemble.predict(call, [call.inputs] * len(ensemble.experts))
            wait(device)
            seconds.append(time.perf_counter() - started)
            copied = placed.conveyor.brought - before
        (vae,) = parts.vaes
        wide: Any = torch.nn.Module.to(vae, decoding_type(ensemble, vae))
        wide.decode(torch.randn(1, vae.config.latent_channels, latents, latents, device=device, dtype=wide.dtype))
        torch.nn.Module.to(vae, ensemble.dtype)
        grown = memory.peak()
        peak = None if grown is None else there + grown
        return Row(plan, placed.residence.peak, copied, peak, statistics.median(seconds[1:]))


def cells(budget: str, row: Row, first: Row) -> tuple[str, ...]:
    """A row as text."""
    plan = row.plan
    parts = plan.parts if plan.controls in (None, "stay") else f"{plan.parts}, ControlNet too"
    said = (budget,) if budget else ()
    said += (str(plan.experts), f"{plan.resident:.3g}", parts)
    said += tuple(map(format_bytes, (row.copied, plan.weights, row.counted, plan.peak)))
    if row.seconds is None or first.seconds is None:
        return said
    peak = "unknown" if row.peak is None else format_bytes(row.peak)
    return (*said, peak, f"{row.seconds:.3f}", f"{row.seconds / first.seconds:.2f}")


def markdown(title: str, first: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A section for docs/memory.md."""
    head = (*first, *COLUMNS, *MEASURED)[: len(rows[0])]
    lines = [head, ("---:",) * len(head), *rows]
    return "\n".join([f"### {title}", "", *("| " + " | ".join(line) + " |" for line in lines), ""])


def main(
    size: Annotated[list[str], typer.Option(help=f"one of {', '.join(ARCHITECTURES)}; several times")] = ["sd15"],  # noqa: B006
    experts: Annotated[list[int], typer.Option(help="how many experts; several times")] = [3],  # noqa: B006
    budget: Annotated[list[str], typer.Option(help="what fits into it, such as 12GB; several times")] = [],  # noqa: B006
    controlnet: Annotated[bool, typer.Option(help="with a ControlNet; only counted")] = False,
    dtype: Annotated[str, typer.Option(help="float16, bfloat16, float32")] = "float16",
    device: Annotated[str, typer.Option(help="meta: count; cuda, cpu: run")] = "meta",
    steps: Annotated[int, typer.Option(help="steps to time; the first is not counted", min=2)] = 6,
    table: Annotated[Path | None, typer.Option("--markdown", help="append the tables here")] = None,
) -> None:
    """Count, and on CUDA measure, every plan."""
    console = Console(width=140)
    for name in size:
        rows, latents = list[tuple[str, ...]](), ARCHITECTURES[name].latents
        for n in experts:
            ensemble = build(name, n, DTYPES[dtype], "meta" if device == "meta" else "cpu")
            done: list[Row] = []
            added = [control(ensemble)] if controlnet and device == "meta" else []
            for limit, plan in plans(ensemble, added, latents, budget):
                one = count(ensemble, added, plan) if device == "meta" else run(ensemble, plan, latents, device, steps)
                done.append(one)
                rows.append(cells(limit, done[-1], done[0]))
                console.print(*rows[-1], sep="  ")
        where = "counted on the meta device, no GPU was used" if device == "meta" else processor(device)
        what = f"{name}{' with a ControlNet' if controlnet else ''}, {8 * latents} px"
        text = markdown(f"{what}, one picture with guidance, {dtype}; {where}", ("budget",) if budget else (), rows)
        console.print(text, markup=False, soft_wrap=True)
        if table is not None:
            with table.open("a") as file:
                file.write("\n" + text)


if __name__ == "__main__":
    typer.run(main)
