"""Denoisers that draw in step, each in a pipeline of its own, as one thing that a memory plan is made for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from diffusemble.ensembles.base import Ensemble
from diffusemble.experts.expert import Expert


class Company(nn.Module):
    """The denoisers of several pipelines, of which one computes at a time.

    It stands where plans and placements take an ensemble whose experts run whole: denoisers that do not stay come when
    their pipeline calls them. What several of them share (the U-Net that different controls are attached to) stays.

    Args:
        pipelines: of one latent space; the first one's VAE and scheduler are those of the picture.
        parts: networks that compute before the first step beside those of the pipelines, such as an image encoder.
    """

    points: tuple[str, ...] = ()

    def __init__(self, pipelines: Sequence[Any], parts: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__()
        first = pipelines[0]
        denoisers = [one.components.get("unet", one.components.get("transformer")) for one in pipelines]
        self.members = tuple({id(denoiser): denoiser for denoiser in denoisers}.values())
        self.denoisers, self.aggregator = nn.ModuleList(self.members), nn.Identity()
        self.denoisers.requires_grad_(False)  # what learns would have to stay
        beside = {name: part for name, part in first.components.items() if part is not denoisers[0]}
        self.experts = (Expert("base", denoisers[0], {**beside, **(parts or {})}, type(first)),)

    @property
    def config(self) -> Any:
        """Configuration of the first denoiser."""
        return self.members[0].config

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the denoisers."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the denoisers."""
        return next(self.parameters()).device


Drawers: TypeAlias = Ensemble | Company
"""What a plan is made for."""
