"""What memory plans take for three controlled Stable Diffusion 1.5 members of one picture, counted without any weights.

    python benchmarks/scene_memory.py [--models]

One U-Net with InteractDiffusion, MIGC and IP-Adapter (with the ViT-H that reads its picture) in the published sizes, at
512 pixels with guidance in half precision; with ``--models``, three U-Nets with one of these controls each.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from architectures import ARCHITECTURES
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from diffusemble.config.memory import MemoryConfig
from diffusemble.config.units import format_bytes
from diffusemble.controls import Interaction
from diffusemble.controls.base import ControlledUNet
from diffusemble.controls.image_prompt import ImagePrompt
from diffusemble.controls.migc import Migc
from diffusemble.memory.company import Company
from diffusemble.memory.measure import measure_weights
from diffusemble.memory.networks import networks_of
from diffusemble.memory.place import Placement
from diffusemble.memory.plan import Plan, make_plan
from diffusemble.memory.working import measure_working

VIT_H = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}


def members(models: bool) -> tuple[Company, list[Any]]:
    """What draws, and pipelines by their parts."""
    with torch.device("meta"):
        experts = ARCHITECTURES["sd15"].experts(3 if models else 1, torch.float16)
        made = []
        for number, control in enumerate((Interaction.from_unet, Migc.from_unet, image_prompt)):
            expert = experts[number % len(experts)]
            unet = ControlledUNet(expert.denoiser, [control(expert.denoiser).half()])
            made.append(SimpleNamespace(components={**expert.components, "unet": unet}))
        settings = CLIPVisionConfig(**VIT_H, image_size=224, patch_size=14, projection_dim=1024)
        encoder = CLIPVisionModelWithProjection(settings).half()
    return Company(made, {"image_encoder": encoder}), made


def image_prompt(unet: Any) -> ImagePrompt:
    """That of IP-Adapter for ViT-H."""
    return ImagePrompt.from_unet(unet, 1024)


def count(company: Company, pipelines: list[Any], plan: Plan) -> int:
    """Most bytes of weights that were there at once when everybody has been called twice."""
    with Placement(company, plan, "meta", pipelines) as placed:
        for number in 2 * list(range(len(placed.visitors.groups))):
            placed.visitors.open(number)
    return placed.residence.peak


def main(
    models: Annotated[bool, typer.Option("--models", help="Three U-Nets in place of one.")] = False,
    things: Annotated[int, typer.Option(help="In boxes.")] = 6,
) -> None:
    """Print a table of plans."""
    company, pipelines = members(models)
    networks = networks_of(company, pipelines)
    sizes = measure_weights(networks), measure_working(networks, (64, 64), 1, True, things)
    print("| members that stay | parts | weights, planned | weights, counted | estimated peak |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for choice in (
        {},
        *({"resident": left, "parts": "visit"} for left in (3, 2, 1, 0)),
        {"resident": 0, "parts": "layers"},
    ):
        plan = make_plan(*sizes, MemoryConfig(**choice))
        bytes_there = plan.weights, count(company, pipelines, plan), plan.peak
        print(f"| {plan.resident:g} | {plan.parts} | {' | '.join(map(format_bytes, bytes_there))} |")


if __name__ == "__main__":
    typer.run(main)
