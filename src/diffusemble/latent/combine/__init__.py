"""Ways in which models that draw one picture meet: one per name in ``registry.COMBINES``."""

from __future__ import annotations

from typing import Any

from diffusemble.config.schema import chosen
from diffusemble.latent.base import Combine
from diffusemble.registry import COMBINES, lookup


def build_combine(name: str, **options: Any) -> Combine:
    """The way ``name`` to combine members, ready for one picture; ``options`` are those of its ``Options`` model.

    Raises:
        ValueError: there is no such way or option, or an option has a value that it cannot have.
    """
    way = lookup(COMBINES, name, "way to combine models")
    built: Combine = way(chosen(way.Options, options, f"Combining by {name!r}"))
    return built
