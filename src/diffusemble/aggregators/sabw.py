"""SABW, the spatial-aware block-wise aggregator of AFA (ICLR 2025, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import Transformer2DModel
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffusemble.aggregators.base import Aggregator, AggregatorOptions, Context, Sizes

PRESETS: Mapping[str, Mapping[str, int]] = {
    "paper": {"width": 128, "heads": 8, "layers": 2},
    "lite": {"width": 128, "heads": 8, "layers": 1},
    "small": {"width": 64, "heads": 8, "layers": 1},
    # At points of one position, groups of one channel would normalise everything to zero.
    "tiny": {"width": 32, "heads": 4, "layers": 1, "groups": 8},
}
"""``paper``, ``lite`` and ``small`` are for SD-sized denoisers, ``tiny`` for the small experts of the zoo."""


class SABWOptions(AggregatorOptions):
    """Size of the aggregator: width d, attention heads, transformer layers L, norm groups; or ``preset`` by name.

    Raises:
        ValueError: unknown preset, or a width that the norm groups or the heads do not divide.
    """

    width: int = Field(default=128, gt=0)
    heads: int = Field(default=8, gt=0)
    layers: int = Field(default=2, gt=0)
    groups: int = Field(default=32, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or given.get("preset") is None:
            return given
        given = dict(given)
        name = given.pop("preset")
        if name not in PRESETS:
            raise ValueError(f"Unknown SABW preset {name!r}. Choose one of: {', '.join(PRESETS)}.")
        return {**PRESETS[name], **given}

    @model_validator(mode="after")
    def _divides(self) -> SABWOptions:
        for divisor, what in ((self.groups, "norm groups"), (self.heads, "heads")):
            if self.width % divisor:
                raise ValueError(f"SABW width {self.width} must be a multiple of its {divisor} {what}.")
        return self


class SABWPoint(nn.Module):
    """The aggregator g of one point: features and context to one logit per expert and position.

    1x1 convolution, residual block with the time embedding, transformer with cross-attention to the text, 1x1
    convolution. The last one starts at zero, so that training starts from the block-wise mean.
    """

    def __init__(self, channels: int, sizes: Sizes, options: SABWOptions) -> None:
        super().__init__()
        width = options.width
        self.conv_in = nn.Conv2d(sizes.experts * channels, width, kernel_size=1)
        self.res_block = ResnetBlock2D(in_channels=width, temb_channels=sizes.time, groups=options.groups, eps=1e-6)
        self.transformer = Transformer2DModel(
            num_attention_heads=options.heads,
            attention_head_dim=width // options.heads,
            in_channels=width,
            num_layers=options.layers,
            cross_attention_dim=sizes.text,
            norm_num_groups=options.groups,
        )
        self.conv_out = nn.Conv2d(width, sizes.experts, kernel_size=1, bias=False)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, features: Float[Tensor, "b nc h w"], context: Context) -> Float[Tensor, "b n h w"]:
        """Logits F = g({y_i}, c̄, t̄) over the experts."""
        dtype = self.conv_in.weight.dtype
        hidden = self.res_block(self.conv_in(features.to(dtype)), context.time.to(dtype))
        hidden = self.transformer(hidden, encoder_hidden_states=context.text.to(dtype), return_dict=False)[0]
        return self.conv_out(hidden)


class SABW(Aggregator):
    """One ``SABWPoint`` per aggregated point; weights are the softmax of its logits over the experts (AFA, eq. 4-5)."""

    Options: ClassVar[type[AggregatorOptions]] = SABWOptions
    presets = PRESETS
    options: SABWOptions

    def __init__(self, sizes: Sizes, options: SABWOptions) -> None:
        super().__init__(sizes, options)
        self.at = nn.ModuleDict(
            {str(point): SABWPoint(sizes.channels[point], sizes, options) for point in sorted(self.points)}
        )

    def weigh(self, point: int, features: Sequence[Tensor], context: Context) -> Float[Tensor, "b n h w"]:
        """Softmax over the experts, taken in float32 at least."""
        logits = self.at[str(point)](torch.cat(list(features), dim=1), context)
        exact = torch.promote_types(logits.dtype, torch.float32)
        return logits.to(exact).softmax(dim=1).to(features[0].dtype)
