"""The closed, typed schema of a merge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, field_validator

from diffusemble.config.schema import Schema, Text, Texts, known
from diffusemble.registry import MERGES

BlockWeights = Text | tuple[float, ...] | Mapping[str, float]


def _one_or_many(value: Any) -> Any:
    """The weights of one expert (a preset, numbers, a mapping) as a list of one."""
    numbers = isinstance(value, (list, tuple)) and all(isinstance(one, (int, float)) for one in value)
    return (value,) if isinstance(value, (str, Mapping)) or (numbers and value) else value


class MergeConfig(Schema):
    """Which models become one, and how.

    Attributes:
        experts: folders, hub ids, ``.safetensors`` files, ``zoo:<name>`` or ``zoo:<group>``, all in one layout; the
            result has the layout, the number types and all other parts of the first.
        method: a name in ``registry.MERGES``.
        options: the method's own options (``shares: [1, 3]``).
        base: the model that differences are taken from, for the methods that need one.
        blocks: weights per block of the denoiser (``blockwise.parse_weights``: a preset, a list of numbers, a mapping),
            for every expert, or for every expert but the first.
        dtype: number type of the merged tensors; that of the first expert by default.
        out: file (``.safetensors``) or folder that does not exist yet.
    """

    experts: Texts
    method: str = "weighted"
    options: Mapping[str, Any] = {}
    base: Text | None = None
    blocks: Annotated[tuple[BlockWeights, ...] | None, BeforeValidator(_one_or_many)] = None
    dtype: Literal["keep", "float32", "float16", "bfloat16"] = "keep"
    out: Text

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        return known(MERGES, method, "method")
