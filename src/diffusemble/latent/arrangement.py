"""What pipelines rearrange in a denoiser while they draw: attention processors, and GLIGEN's switches."""

from __future__ import annotations

from typing import Any

from diffusers.models.attention import GatedSelfAttentionDense
from torch import nn


class Arrangement:
    """Attention processors and fuser switches of a denoiser, to be read and put back.

    Perturbed-attention pipelines exchange processors for the time of their call, GLIGEN's switch the fusers off on the
    way. Where members share a denoiser, each has to find it as it left it.
    """

    def __init__(self, denoiser: nn.Module | None) -> None:
        modules = [] if denoiser is None else list(denoiser.modules())
        self._attentions: list[Any] = [module for module in modules if hasattr(module, "set_processor")]
        self._fusers = [module for module in modules if isinstance(module, GatedSelfAttentionDense)]

    def read(self) -> list[Any]:
        """How it is now."""
        return [*(each.processor for each in self._attentions), *(each.enabled for each in self._fusers)]

    def write(self, values: list[Any]) -> None:
        """Make it as it was when ``values`` were read."""
        count = len(self._attentions)
        for attention, processor in zip(self._attentions, values[:count], strict=True):
            if attention.processor is not processor:
                attention.set_processor(processor)
        for fuser, enabled in zip(self._fusers, values[count:], strict=True):
            fuser.enabled = enabled
