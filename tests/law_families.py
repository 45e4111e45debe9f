"""The families of denoisers that the laws run on: how each is built, called, and what its points look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusemble import pack_text
from tiny import WIDTH, tiny_unet
from tiny_dit import T5_WIDTH, tiny_flux, tiny_sd3

TEXT = 20  # width of the U-Nets' text
Arguments = Callable[[Tensor, Tensor, Sequence[Tensor]], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """One family of denoisers.

    Attributes:
        name: for the tests' names.
        build: a denoiser for a seed.
        arguments: those of ``forward`` for latents ``[b c h w]``, timesteps ``[b]`` and the texts of its experts.
        latents: shape ``[c h w]`` of one sample's latents.
        text: width of a text.
        sides: grids of all points.
        few: some points, the last one among them.
        exact: what two ways to the same number may differ by in float64; transformers embed positions in float32.
    """

    name: str
    build: Callable[[int], nn.Module]
    arguments: Arguments
    latents: tuple[int, int, int]
    text: int
    sides: frozenset[tuple[int, int]]
    few: tuple[int, ...]
    exact: float


def _unet(sample: Tensor, timestep: Tensor, texts: Sequence[Tensor]) -> dict[str, Any]:
    return {"sample": sample, "timestep": timestep, "encoder_hidden_states": pack_text(texts)}


def _packed(texts: Sequence[Tensor], pooled: int) -> dict[str, Tensor]:
    """Text and, from its first token, pooled text."""
    first = [text[:, 0, :pooled] for text in texts]
    return {"encoder_hidden_states": pack_text(texts), "pooled_projections": pack_text(first)}


def flux_arguments(sample: Tensor, timestep: Tensor, texts: Sequence[Tensor]) -> dict[str, Any]:
    """Arguments of a FLUX transformer for latents on their grid."""
    tokens = sum(text.shape[1] for text in texts)
    return {
        "hidden_states": sample.flatten(2).transpose(1, 2).contiguous(),
        "timestep": timestep / 1000,
        "guidance": torch.full((len(sample),), 3.5),
        "img_ids": image_ids(*sample.shape[2:]),
        "txt_ids": torch.zeros(tokens, 3),
        **_packed(texts, WIDTH),
    }


def image_ids(height: int, width: int) -> Tensor:
    """FLUX's positions of a grid, ``[h·w 3]``."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).float()


def sd3_arguments(sample: Tensor, timestep: Tensor, texts: Sequence[Tensor]) -> dict[str, Any]:
    """Arguments of an SD3 transformer."""
    return {"hidden_states": sample, "timestep": timestep, **_packed(texts, 2 * WIDTH)}


def _build_unet(seed: int) -> nn.Module:
    sizes = {"block_out_channels": (8, 16, 24, 40), "cross_attention_dim": TEXT, "norm_num_groups": 4}
    return tiny_unet(seed, **sizes)


UNET = Family(
    name="unet",
    build=_build_unet,
    arguments=_unet,
    latents=(4, 9, 13),
    text=TEXT,
    sides=frozenset({(9, 13), (5, 7), (3, 4), (2, 2)}),
    few=(0, 3, 24),
    exact=1e-12,
)
FLUX = Family(
    name="flux",
    build=lambda seed: tiny_flux(seed),
    arguments=flux_arguments,
    latents=(16, 5, 7),
    text=T5_WIDTH,
    sides=frozenset({(5, 7)}),
    few=(0, 3, 4),
    exact=5e-6,
)
SD3 = Family(
    name="sd3",
    build=lambda seed: tiny_sd3(seed),
    arguments=sd3_arguments,
    latents=(4, 10, 14),
    text=T5_WIDTH,
    sides=frozenset({(5, 7), (10, 14)}),
    few=(0, 3),
    exact=5e-6,
)
FAMILIES: Mapping[str, Family] = {family.name: family for family in (UNET, FLUX, SD3)}
TRANSFORMERS: Mapping[str, Family] = {name: family for name, family in FAMILIES.items() if family is not UNET}
