"""Tiny gated controls with open gates, and conditions for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffusemble.controls.gated_control import GatedControl
from diffusemble.controls.gligen import Gligen, GligenCondition
from diffusemble.controls.interaction import Interaction, InteractionCondition
from tiny import WIDTH, randomised

SLOTS, HIDDEN = 5, 24


def boxes(count: int, seed: int = 0) -> Tensor:
    """Boxes ``[n 4]`` with corners in order."""
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)).sort(dim=1).values
    return corners.flatten(1)


def relations(count: int = 2, seed: int = 0, width: int = WIDTH, **settings: float) -> InteractionCondition:
    """A condition of random relations."""
    phrases = torch.randn(3, count, width, generator=torch.Generator().manual_seed(seed + 1))
    return InteractionCondition(boxes(count, seed), boxes(count, seed + 2), *phrases, **settings)


def things(count: int = 2, seed: int = 0, **settings: float) -> GligenCondition:
    """A condition of random things in boxes."""
    phrases = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed + 1))
    return GligenCondition(boxes(count, seed), phrases, **settings)


CONDITIONS: dict[type[GatedControl], Any] = {Interaction: relations, Gligen: things}


def opened(kind: type[GatedControl], unet: nn.Module, seed: int = 0) -> Any:
    """A tiny control for the U-Net whose gates are open."""
    torch.manual_seed(seed)
    control = randomised(kind.from_unet(unet, hidden=HIDDEN, slots=SLOTS), seed)
    for name, parameter in control.named_parameters():
        if "alpha" in name:
            nn.init.constant_(parameter, 1.0)
    return control


def inputs(rows: int = 2, guided: bool = True, seed: int = 0) -> tuple[Tensor, int, Tensor]:
    """Latents, timestep and text; with guidance the second half of the latents is the first."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(rows // 2 if guided else rows, 4, 8, 8, generator=generator)
    return torch.cat([latents, latents]) if guided else latents, 500, torch.randn(rows, 7, WIDTH, generator=generator)
