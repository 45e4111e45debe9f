"""Held-out loss of experts that meet at the output, against each alone and against meeting at every block.

    diffusemble train --config recipes/zoo/output.yaml
    python benchmarks/output_level.py

Prints the loss of predicted noise on pictures of the zoo that no expert has seen, and differences of pairs (same
picture, same noise) with 95 % bootstrap intervals over concepts.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusemble.ensembles.assembly import open_ensemble
from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.ensembles.output_level import OutputEnsembleDenoiser
from diffusemble.evaluation.heldout import HeldOut, encode_images, losses
from diffusemble.evaluation.pictures import choose, read_images, read_rows
from diffusemble.evaluation.statistics import paired_bootstrap
from diffusemble.evaluation.systems import System, plain_pipeline
from diffusemble.zoo import trained_ensemble

TIMES = (50, 150, 250, 350, 450, 550, 650, 750, 850, 950)
SPLITS = ("pair", "concept")  # a known thing in a style it was not seen in; a thing nobody has seen


def pipelines(group: str, folder: Path) -> dict[str, Any]:
    """Every way to predict, by name."""
    output = open_ensemble(folder).eval()
    experts = output.experts
    found = {f"expert {expert.name}": plain_pipeline(expert) for expert in experts}
    block = trained_ensemble(group)
    found["mean at the output"] = OutputEnsembleDenoiser(experts).eval().pipeline()
    found["mean at every block"] = EnsembleDenoiser(experts).eval().pipeline()
    found["SABW at the output"] = output.pipeline()
    if block is not None:
        found["SABW at every block"] = open_ensemble(block).eval().pipeline()
    return found


@torch.no_grad()
def measured(ways: Mapping[str, Any], data: Path, split: str, count: int | None) -> tuple[dict[str, Any], list[str]]:
    """Loss of every picture, averaged over the timesteps, by way; and the pictures' concepts."""
    rows = choose(read_rows(data), split, count, data)
    latents = encode_images(next(iter(ways.values())).vae, read_images(data, rows))
    held = HeldOut(tuple(row.file_name for row in rows), tuple(row.text for row in rows), latents)
    found = {}
    for name, pipeline in ways.items():
        system = System(name, name, "control", pipeline)
        found[name] = losses(system.predict, held, system.diffusion, TIMES).mean(dim=1).numpy()
    return found, [row.concept for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--group", default="topics")
    parser.add_argument("--folder", type=Path, default=Path("build/zoo/ensembles/topics-output"))
    parser.add_argument("--data", type=Path, default=Path("build/zoo/data"))
    parser.add_argument("--count", type=int, help="pictures of each split; all by default")
    given = parser.parse_args()
    ways = pipelines(given.group, given.folder)
    for split in SPLITS:
        found, concepts = measured(ways, given.data, split, given.count)
        best = min((name for name in found if name.startswith("expert")), key=lambda name: found[name].mean())
        references = [best, *(name for name in found if "mean" in name or name.endswith("every block"))]
        print(f"\n{split}: {len(concepts)} pictures, loss x 1000\n")
        print(f"| | loss | {' | '.join(f'minus {name}' for name in references)} |")
        print(f"|---|---|{'---|' * len(references)}")
        for name, loss in found.items():
            cells = []
            for reference in references:
                gap = paired_bootstrap(1000 * (loss - found[reference]), concepts)
                own = np.array_equal(loss, found[reference])
                cells.append("" if own else f"{gap.value:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]")
            print(f"| {name} | {1000 * loss.mean():.2f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
