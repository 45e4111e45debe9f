"""What one training step of SABW holds beside the weights, counted on the meta device: an estimate, nothing is run.

    python benchmarks/training_memory.py --size sd15 --experts 3

Counted is every tensor that is alive at once in the forward and backward pass: batch 1 without guidance, experts in
half precision, the aggregator in float32. A running training also holds the aggregator's gradients (counted here), the
two moments of AdamW, and what an allocator and its kernels want for themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from architectures import ARCHITECTURES
from torch.nn import functional

from diffusemble import EnsembleDenoiser, build_aggregator
from diffusemble.blocks.example import example
from diffusemble.config.units import format_bytes
from diffusemble.memory.bundle import bytes_of, weights_of
from diffusemble.memory.live import fused_attention, peak_bytes
from diffusemble.memory.measure import measure_weights
from diffusemble.memory.networks import networks_of
from diffusemble.memory.recompute import recompute_blocks


def build(size: str, n: int, preset: str) -> EnsembleDenoiser:
    """``n`` experts in half precision and an aggregator in float32, without numbers."""
    with torch.device("meta"):
        denoiser = torch.nn.Module.half(ARCHITECTURES[size].build())
        aggregator = build_aggregator("sabw", [denoiser] * n, preset=preset)
    return EnsembleDenoiser([denoiser] * n, aggregator)


def keep_all(ensemble: EnsembleDenoiser) -> None:
    """As it comes."""


def checkpoint_layers(ensemble: EnsembleDenoiser) -> None:
    """Diffusers' own checkpointing."""
    ensemble.enable_gradient_checkpointing()


def run_again(ensemble: EnsembleDenoiser) -> None:
    """Whole blocks, and the aggregator's own network."""
    ensemble.aggregator.gradient_checkpointing = True  # type: ignore[assignment]
    recompute_blocks(ensemble)


WAYS: dict[str, Callable[[EnsembleDenoiser], None]] = {
    "everything is kept": keep_all,
    "experts' layers run again (diffusers)": checkpoint_layers,
    "blocks and aggregator run again": run_again,
}


def step(ensemble: EnsembleDenoiser, latents: int) -> int:
    """Bytes at most in one forward and backward pass."""
    with torch.device("meta"):
        call: Any = example(ensemble.denoisers[0], (latents, latents), 1)

        def learn() -> None:
            prediction = ensemble.predict(call, [call.inputs] * len(ensemble.experts))
            prediction.float().square().mean().backward()

        # In a backward pass the mode that answers for attention is not in force.
        with mock.patch.object(functional, "scaled_dot_product_attention", fused_attention):
            return peak_bytes(learn, gradients=True)


def main(
    size: Annotated[str, typer.Option(help=f"one of {', '.join(ARCHITECTURES)}")] = "sd15",
    experts: Annotated[int, typer.Option(min=1)] = 3,
    preset: Annotated[str, typer.Option(help="of SABW")] = "paper",
) -> None:
    """Count one step in every way."""
    typer.echo("| what is kept | working memory | experts | aggregator, AdamW | in all | experts pass | in all then |")
    typer.echo("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, prepare in WAYS.items():
        ensemble = build(size, experts, preset).train()
        prepare(ensemble)
        working = step(ensemble, ARCHITECTURES[size].latents)
        learned = bytes_of(weights_of([ensemble.aggregator]))
        weights = measure_weights(networks_of(ensemble))
        own = bytes_of(weights_of([ensemble.denoisers[0]]))
        outside = own - sum(weights.blocks[0])
        frozen, passing = experts * own, experts * outside + 2 * max(weights.blocks[0])
        # Gradients are among what was counted; weights and two moments are not.
        sums = [working + part + 3 * learned for part in (frozen, passing)]
        row = (working, frozen, 3 * learned, sums[0], passing, sums[1])
        typer.echo(f"| {name} | " + " | ".join(map(format_bytes, row)) + " |")


if __name__ == "__main__":
    typer.run(main)
