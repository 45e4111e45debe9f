"""The closed, typed schema of who draws a scene, and how they meet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from diffusemble.config.schema import Schema, Text, known, nearest
from diffusemble.registry import COMBINES

Share = Annotated[float, Field(ge=0, le=1)]

CONTROLS = ("interaction", "migc", "image-prompt", "gligen")
KINDS = (*CONTROLS, "plain", "model", "ensemble")
"""``plain`` is the base without control; ``model`` and ``ensemble`` are others that share its latents."""


class MemberConfig(Schema):
    """One model that takes part. As text: a kind, ``model:SOURCE``, ``ensemble:SOURCE`` or ``zoo:NAME``.

    Attributes:
        kind: one of ``KINDS``.
        name: short and unique; the kind or the source's last part by default.
        source: weights of the control, model or ensemble; for the base ``zoo:scenes``, its own controls by default.
        encoder: folder of the picture encoder of an image prompt.
        prompt: instead of the scene's.
        negative: instead of the scene's.
        guidance: instead of the scene's.
        weight, length, window: see ``latent.Member``.
        scale: of the control: 1 as trained, 0 off.
        until: share of the schedule in which a control of instances works; as trained by default.
    """

    kind: str
    name: str
    source: Text | None = None
    encoder: Text | None = None
    prompt: str | None = None
    negative: str | None = None
    guidance: Annotated[float, Field(ge=0)] | None = None
    weight: float | None = None
    length: Annotated[float, Field(ge=0)] | None = None
    window: Share | tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] | None = None
    scale: float = 1.0
    until: Share | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            kind, colon, source = value.partition(":")
            if kind not in KINDS and (kind == "zoo" or "/" in kind or value.endswith(".safetensors")):
                value = {"kind": "model", "source": value}
            else:
                value = {"kind": kind, **({"source": source} if colon else {})}
        if isinstance(value, Mapping) and isinstance(value.get("kind"), str) and not value.get("name"):
            kind, source = value["kind"], str(value.get("source") or "")
            own = re.split(r"[/:]", source.rstrip("/").removesuffix(".safetensors"))[-1]
            value = {**value, "name": (own if kind in ("model", "ensemble") else "") or kind}
        return value

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(
                f"there is no kind of member {kind!r}{nearest(kind, KINDS)}. Choose one of: {', '.join(KINDS)}; or "
                f"give a checkpoint as model:SOURCE, an ensemble as ensemble:FOLDER"
            )
        return kind

    @model_validator(mode="after")
    def _whole(self) -> MemberConfig:
        if self.kind in ("model", "ensemble") and self.source is None:
            raise ValueError(f"the {self.kind} {self.name!r} needs its source; write {self.kind}:FOLDER")
        return self


class CombineConfig(Schema):
    """A way to combine members by name, with its own options (``mix: linear``)."""

    name: str = "amdm"
    options: Mapping[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return known(COMBINES, name, "way to combine members")
