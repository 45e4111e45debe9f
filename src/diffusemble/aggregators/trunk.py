"""The network of SABW (AFA, ICLR 2025, section 3): features and context to one logit per expert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import Transformer2DModel
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from diffusemble.aggregators.base import CombinerOptions, Context, Sizes

PRESETS: Mapping[str, Mapping[str, int]] = {
    "paper": {"width": 128, "heads": 8, "layers": 2},
    "lite": {"width": 128, "heads": 8, "layers": 1},
    "lite-pooled": {"width": 128, "heads": 8, "layers": 1, "pool": 2},
    "small": {"width": 64, "heads": 8, "layers": 1},
    # At points of one position, groups of one channel would normalise everything to zero.
    "tiny": {"width": 16, "heads": 4, "layers": 1, "groups": 4},
}
"""``tiny`` is for the small experts of the zoo, the others are for SD-sized denoisers."""


class TrunkOptions(CombinerOptions):
    """Size of the network and what it sees; or ``preset`` by name.

    Attributes:
        width: channels d.
        heads: attention heads.
        layers: transformer layers L.
        groups: norm groups.
        time: whether it sees the time embedding.
        text: whether it sees the text embedding.
        pool: side of the squares of positions that become one token of the transformer, by averaging; 1 keeps every
            position a token.
        pool_from: shorter side of a feature from which on its positions are pooled.

    Raises:
        ValueError: unknown preset, or a width that the norm groups or the heads do not divide.
    """

    width: int = Field(default=128, gt=0)
    heads: int = Field(default=8, gt=0)
    layers: int = Field(default=2, gt=0)
    groups: int = Field(default=32, gt=0)
    time: bool = True
    text: bool = True
    pool: int = Field(default=1, gt=0)
    pool_from: int = Field(default=32, gt=0)

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
    def _divides(self) -> TrunkOptions:
        for divisor, what in ((self.groups, "norm groups"), (self.heads, "heads")):
            if self.width % divisor:
                raise ValueError(f"SABW width {self.width} must be a multiple of its {divisor} {what}.")
        return self


class Trunk(nn.Module):
    """1x1 convolution, residual block with the time embedding, transformer with cross-attention to the text, 1x1
    convolution. The last one starts at zero, so that training starts from equal logits.

    Args:
        channels: of everything it reads, stacked.
        sizes: of the experts.
        options: see ``TrunkOptions``.
    """

    def __init__(self, channels: int, sizes: Sizes, options: TrunkOptions) -> None:
        super().__init__()
        width = options.width
        self.options = options
        self.conv_in = nn.Conv2d(channels, width, kernel_size=1)
        self.res_block = ResnetBlock2D(
            in_channels=width, temb_channels=sizes.time if options.time else None, groups=options.groups, eps=1e-6
        )
        self.transformer = Transformer2DModel(
            num_attention_heads=options.heads,
            attention_head_dim=width // options.heads,
            in_channels=width,
            num_layers=options.layers,
            cross_attention_dim=sizes.text if options.text else None,
            norm_num_groups=options.groups,
        )
        self.conv_out = nn.Conv2d(width, sizes.experts, kernel_size=1, bias=False)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, features: Float[Tensor, "b nc h w"], context: Context) -> Float[Tensor, "b n h w"]:
        """Logits F = g({y_i}, c̄, t̄) over the experts."""
        dtype = self.conv_in.weight.dtype
        time = context.time.to(dtype) if self.options.time else None
        hidden = self.res_block(self.conv_in(features.to(dtype)), time)
        return self.conv_out(self._attend(hidden, context))

    def _attend(self, hidden: Tensor, context: Context) -> Tensor:
        """The transformer; where tokens are pooled, what it adds is spread over each token's positions."""
        text = {}
        if self.options.text:
            words = context.text.to(hidden.dtype)
            text = {"encoder_hidden_states": words, "encoder_attention_mask": context.mask}
        pool = self.options.pool
        if pool == 1 or min(hidden.shape[2:]) < self.options.pool_from:
            return self.transformer(hidden, **text, return_dict=False)[0]
        tokens = functional.avg_pool2d(hidden, pool, ceil_mode=True)
        added = self.transformer(tokens, **text, return_dict=False)[0] - tokens
        spread = functional.interpolate(added, scale_factor=pool)
        return hidden + spread[..., : hidden.shape[2], : hidden.shape[3]]


def pooled(logits: Float[Tensor, "b n h w"]) -> Float[Tensor, "b n"]:
    """One logit per expert: the mean over all positions."""
    return logits.mean(dim=(2, 3))
