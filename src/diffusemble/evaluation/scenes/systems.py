"""What is compared on scenes: members, a way to combine them, and what each is told."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from diffusemble.config.schema import Schema
from diffusemble.scene.member_config import CombineConfig, MemberConfig

THREE = ("migc", "interaction", "image-prompt")  # on the zoo, MIGC is the best base by far
PEERS = ("linear", "composable", "magicfusion", "superdiff-or", "superdiff-and")


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class SceneSystem(Schema):
    """One way to draw scenes.

    Attributes:
        name: short and fit for a file name.
        title: for tables; the name by default.
        members: who draws, the base first.
        combine: how they meet.
        prompts: ``"own"``: each member with a control is told of its part alone, as it was trained; ``"whole"``: every
            member gets the whole caption.
        shared_noise: see ``latent.aggregate``.
    """

    name: Annotated[str, Field(pattern=r"^[\w.+-]+$")]
    title: str = ""
    members: Annotated[tuple[MemberConfig, ...], Field(min_length=1)]
    combine: Annotated[CombineConfig, BeforeValidator(_named)] = CombineConfig()
    prompts: Literal["own", "whole"] = "own"
    shared_noise: bool | None = None


def _system(name: str, title: str, *members: str, **settings: Any) -> SceneSystem:
    return SceneSystem.model_validate({"name": name, "title": title, "members": members, **settings})


STANDARD: tuple[SceneSystem, ...] = (
    _system("base", "the base, told everything", "plain"),
    *(_system(kind, f"{kind} alone", kind) for kind in THREE),
    _system("amdm", "AMDM of the three", *THREE),
    *(_system(way, f"{way} of the three", *THREE, combine=way) for way in PEERS),
)
"""Each member alone, all together by AMDM and by every peer that needs nothing else to be said (masks do)."""
