"""MIGC's module at one cross-attention (arXiv 2402.05408): enhancement, layout attention, shading aggregation.

Written from the mathematics alone. Attributes have the names that published weights have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from diffusemble.controls.boxes import FEATURES, fourier
from diffusemble.controls.migc_masks import Masks


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of a module.

    Attributes:
        channels: of the features.
        context: width of a pooled text embedding.
        heads: of both attentions.
        slots: maps that are weighed against each other: background, layout, and one of every possible instance.
        hidden: width of the network that reads boxes.
        reduction: how many times narrower than the channels the gate of channels is.

    Raises:
        ValueError: the channels do not divide by the heads, the gate has no width, or no slot is left for an instance.
    """

    channels: int
    context: int = 768
    heads: int = 8
    slots: int = 30
    hidden: int = 512
    reduction: int = 16

    def __post_init__(self) -> None:
        if self.channels % self.heads or self.reduction > self.channels or self.slots < 3:
            raise ValueError(
                f"MIGC needs channels that divide by the heads, a reduction of at most the channels, and three "
                f"slots or more; got {self.channels} channels, {self.heads} heads, reduction {self.reduction} and "
                f"{self.slots} slots. Narrow U-Nets take fewer heads and a smaller reduction."
            )


@dataclass(frozen=True)
class Instances:
    """All instances of all pictures of a call, after each other.

    Attributes:
        rows: ``[p]``, the pictures' rows in the batch.
        owner: ``[n]``, which of the p pictures an instance belongs to.
        text: ``[n s d]``, an embedding of its phrase.
        pooled: ``[n d]``, the same as one vector.
        boxes: ``[n 4]`` as x1, y1, x2, y2.
        slots: ``[n]``, which place an instance has among the maps of its picture, from 0.
        scales: ``[n 3]``, factors of what its text gives, of its enhancement, and of its map.
    """

    rows: Tensor
    owner: Tensor
    text: Tensor
    pooled: Tensor
    boxes: Tensor
    slots: Tensor
    scales: Tensor


class Attention(nn.Module):
    """Attention with several heads: queries from one width, keys and values from another."""

    to_out: Any

    def __init__(self, channels: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context, channels, bias=False)
        self.to_v = nn.Linear(context, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, hidden: Tensor, context: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Let places ``[b l c]`` look at a context ``[b s d]``, where ``allowed [b 1 l s]``."""
        parts = self.to_q(hidden), self.to_k(context), self.to_v(context)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        seen = scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        return self.to_out(seen.transpose(1, 2).flatten(-2))


class PositionNet(nn.Module):
    """A box as a token."""

    linears_position: Any

    def __init__(self, context: int, hidden: int) -> None:
        super().__init__()
        self.linears_position = nn.Sequential(
            nn.Linear(FEATURES, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, context)
        )

    def forward(self, boxes: Tensor) -> Tensor:
        """Tokens ``[n d]`` of boxes ``[n 4]`` (x1, y1, x2, y2)."""
        # The published weights read both numbers of a side one after the other.
        features = fourier(boxes.float()[:, [0, 2, 1, 3]])
        return self.linears_position(features.to(self.linears_position[0].weight.dtype))


class ChannelGate(nn.Module):
    """Weighs channels by their mean and their maximum over all places."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Gated maps ``[b c h w]``."""
        gate = self.mlp(maps.mean(dim=(2, 3))) + self.mlp(maps.amax(dim=(2, 3)))
        return maps * gate.sigmoid()[:, :, None, None]


class SpatialGate(nn.Module):
    """Weighs places by the maximum and the mean over all channels around them."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.ModuleDict({"conv": nn.Conv2d(2, 1, 7, padding=3, bias=False)})

    def forward(self, maps: Tensor) -> Tensor:
        """Gated maps ``[b c h w]``."""
        summary = torch.cat((maps.amax(dim=1, keepdim=True), maps.mean(dim=1, keepdim=True)), dim=1)
        return maps * self.spatial["conv"](summary).sigmoid()


class Cbam(nn.Module):
    """Convolutional block attention (arXiv 1807.06521): first channels, then places."""

    ChannelGate: Any
    SpatialGate: Any

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.ChannelGate = ChannelGate(channels, hidden)
        self.SpatialGate = SpatialGate()

    def forward(self, maps: Tensor) -> Tensor:
        """Gated maps ``[b c h w]``."""
        return self.SpatialGate(self.ChannelGate(maps))


class ShadingAggregation(nn.Module):
    """Weighs background, instances and layout against each other at every place."""

    conv1: Any
    conv2: Any

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        channels, self.slots = sizes.channels, sizes.slots
        self.conv1 = nn.Conv2d(channels + 1, channels, 1)
        self.cbam1 = Cbam(channels, channels // sizes.reduction)
        self.conv2 = nn.Conv2d(channels, 1, 1)
        self.cbam2 = Cbam(sizes.slots, sizes.slots)

    def forward(self, rest: Tensor, shaded: Tensor, layout: Tensor, instances: Instances, masks: Masks) -> Tensor:
        """The mixture ``[p l c]`` of ``rest [p l c]``, ``shaded [n l c]`` and ``layout [p l c]``."""
        owner, place = instances.owner, 1 + instances.slots
        weights = self.weights(rest, shaded, layout, instances, masks).flatten(2).unsqueeze(-1)  # [p slots l 1]
        mixed = weights[:, 0] * rest + weights[:, -1] * layout
        return mixed.index_add(0, owner, weights[owner, place] * shaded)

    def weights(self, rest: Tensor, shaded: Tensor, layout: Tensor, instances: Instances, masks: Masks) -> Tensor:
        """Weights ``[p slots h w]``, which sum to one over the slots; slots without an instance have none."""
        owner, place = instances.owner, 1 + instances.slots
        phases = torch.cat((rest, shaded, layout, torch.zeros_like(rest[:1])))
        covers = torch.cat((masks.rest, masks.instances, torch.ones_like(masks.rest), torch.zeros_like(masks.rest[:1])))
        stacked = torch.cat((phases, covers.to(phases.dtype)), dim=-1).transpose(1, 2).unflatten(-1, masks.grid)
        logits = self.conv2(self.cbam1(self.conv1(stacked))).squeeze(1)  # [2p+n+1 h w]
        first, own, last, empty = logits.split((len(rest), len(shaded), len(layout), 1))
        maps = empty.expand(len(rest), self.slots, -1, -1).clone()
        maps[:, 0], maps[:, -1], maps[owner, place] = first, last, own
        filled = torch.zeros(maps.shape[:2], dtype=torch.bool, device=maps.device)
        filled[:, 0], filled[:, -1], filled[owner, place] = True, True, True
        scales = torch.ones_like(maps[:, :, 0, 0])
        scales[owner, place] = instances.scales[:, 2].to(scales.dtype)
        gated = self.cbam2(maps) * scales[:, :, None, None]
        return gated.masked_fill(~filled[:, :, None, None], -torch.inf).softmax(dim=1)


class MigcLayer(nn.Module):
    """What MIGC adds to one cross-attention."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.ea = Attention(sizes.channels, sizes.context, sizes.heads)
        self.la = Attention(sizes.channels, sizes.channels, sizes.heads)
        self.norm = nn.LayerNorm(sizes.channels)
        self.sac = ShadingAggregation(sizes)
        self.pos_net = PositionNet(sizes.context, sizes.hidden)

    def forward(
        self, hidden: Tensor, shared: Tensor, own: Tensor, instances: Instances, masks: Masks, together: Tensor
    ) -> Tensor:
        """The layer's output in the place of the cross-attention's.

        Args:
            hidden: ``[p l c]``, what the cross-attention was called with.
            shared: ``[p l c]``, what it gave for the prompt.
            own: ``[n l c]``, what it gives for every instance's phrase.
            instances: of all p pictures.
            masks: of all p pictures.
            together: ``[p 1 l l]``, which places of a picture see each other.
        """
        scales = instances.scales.to(hidden.dtype)[:, :, None, None]  # [n 3 1 1]
        inside = masks.instances.to(hidden.dtype)
        shaded = scales[:, 0] * own * inside + scales[:, 1] * self.enhance(hidden, instances) * inside
        layout = self.la(hidden, hidden, together)
        return self.sac(shared * masks.rest.to(hidden.dtype), shaded, layout, instances, masks)

    def enhance(self, hidden: Tensor, instances: Instances) -> Tensor:
        """Every instance's own features ``[n l c]`` from its phrase and its box."""
        context = torch.stack((instances.pooled.to(hidden.dtype), self.pos_net(instances.boxes)), dim=1)
        return self.ea(self.norm(hidden)[instances.owner], context)

    @torch.no_grad()
    def start(self) -> None:
        """Set weights to begin training with: instances' texts rule in their boxes, the prompt's outside.

        Enhancement and layout give nothing yet, and maps follow the masks.
        """
        for weight in (self.ea.to_out[0].weight, self.la.to_out[0].weight, self.sac.conv2.weight):
            weight.zero_()
        for bias in (self.ea.to_out[0].bias, self.la.to_out[0].bias, self.sac.conv2.bias):
            bias.zero_()
        for cbam in (self.sac.cbam1, self.sac.cbam2):
            cbam.ChannelGate.mlp[3].weight.zero_()
            cbam.ChannelGate.mlp[3].bias.fill_(2)  # counts twice, once for the mean and once for the maximum
            cbam.SpatialGate.spatial["conv"].weight.zero_()
        self.sac.cbam2.ChannelGate.mlp[3].bias[-1] = 0  # the layout's mask is 1 everywhere; it must not win by that
        self.sac.conv1.weight[0].zero_()
        self.sac.conv1.bias[0] = 0
        self.sac.conv1.weight[0, -1] = 5  # the first channel is the mask, and the map is the first channel
        self.sac.conv2.weight[0, 0] = 5
