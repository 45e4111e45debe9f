"""Feature maps that side networks (ControlNet, T2I-adapter) add to a U-Net, sorted to the points they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor


@dataclass(frozen=True)
class Residuals:
    """What to add where.

    Attributes:
        adapter: T2I-adapter maps by the name of the point after which each is added.
        skips: one ControlNet map per skip connection, oldest first.
        mid: ControlNet map for the middle.
    """

    adapter: Mapping[str, Tensor]
    skips: Sequence[Tensor] | None
    mid: Tensor | None


def take_residuals(unet: UNet2DConditionModel, given: dict[str, Any]) -> Residuals:
    """Remove the three residual arguments of ``UNet2DConditionModel.forward`` from ``given`` and sort them.

    Raises:
        ValueError: half of a ControlNet's output is missing, or the number of maps does not fit the U-Net.
    """
    skips = given.pop("down_block_additional_residuals", None)
    mid = given.pop("mid_block_additional_residual", None)
    adapter = given.pop("down_intrablock_additional_residuals", None)
    if skips is not None and mid is None and adapter is None and len(skips) <= len(unet.down_blocks) + 1:
        skips, adapter = None, skips  # diffusers' older way to pass a T2I-adapter, which has fewer maps
    if (skips is None) != (mid is None):
        names = ("down_block_additional_residuals", "mid_block_additional_residual")
        came, absent = names if mid is None else names[::-1]
        raise ValueError(f"{came} came without {absent}. A ControlNet gives both; pass both, or leave both out.")
    kept = 1 + sum(len(block.resnets) + (block.downsamplers is not None) for block in unet.down_blocks)
    if skips is not None and len(skips) != kept:
        raise ValueError(
            f"down_block_additional_residuals has {len(skips)} tensors, but this U-Net keeps {kept} skip connections. "
            f"Use a ControlNet made for this architecture."
        )
    return Residuals(_place_adapter(unet, adapter or ()), skips, mid)


def fitting(adapter: Tensor, hidden: Tensor, point: str) -> Tensor:
    """``adapter``, if it can be added to the feature ``hidden [b c h w]`` of ``point``.

    Raises:
        ValueError: channels or sides differ. Torch would stretch a side of 1 over the whole feature.
    """
    if adapter.shape[1:] != hidden.shape[1:]:
        raise ValueError(
            f"down_intrablock_additional_residuals: the map for {point} has the shape {tuple(adapter.shape)}, but the "
            f"feature there is {tuple(hidden.shape)}. Use a T2I-adapter made for this architecture and image size."
        )
    return adapter


def _place_adapter(unet: UNet2DConditionModel, maps: Sequence[Tensor]) -> dict[str, Tensor]:
    points = []
    for level, block in enumerate(unet.down_blocks):
        # diffusers adds the map before the sampler in blocks with attention, and after it in those without.
        after_sampler = block.downsamplers is not None and not hasattr(block, "attentions")
        points.append(f"down.{level}." + ("downsample" if after_sampler else f"layer{len(block.resnets) - 1}"))
    points.append("mid")
    if len(maps) > len(points):
        raise ValueError(
            f"down_intrablock_additional_residuals has {len(maps)} tensors, but this U-Net takes at most {len(points)} "
            f"(one per down level and one in the middle). Use a T2I-adapter made for this architecture."
        )
    return dict(zip(points, maps, strict=False))
