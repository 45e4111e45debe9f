"""The settings of a memory plan; nothing here imports torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from diffusemble.config.schema import Schema


class MemoryConfig(Schema):
    """What a memory plan may do; what is left out is chosen, fastest first.

    Attributes:
        resident: how many denoisers stay on the device; of one and a half (1.5) as many blocks stay, evenly spread.
        parts: whether text encoders and VAE stay, come when they are called, or come layer by layer.
        controls: whether ControlNets stay, or come in every step when they are called.
        vae: whether all pictures are decoded at once, one by one, or tile by tile (which blends their borders).
        storage: number type of the experts' blocks at rest; eight bits change the pictures a little.
        attention_slicing: compute attention in slices, for devices without a fused kernel.
    """

    resident: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    parts: Literal["stay", "visit", "layers"] | None = None
    controls: Literal["stay", "visit"] | None = None
    vae: Literal["whole", "pictures", "tiles"] | None = None
    storage: Literal["same", "float8", "int8"] = "same"
    attention_slicing: bool = False
