"""The controls that ship for the base of scenes: their files."""

from __future__ import annotations

from pathlib import Path

from diffusemble.zoo.experts import WEIGHTS

CONTROLS = ("interaction", "migc", "image_prompt")


def control_file(name: str) -> Path:
    """The weights of a control for ``zoo.folder("scenes")``, for its class's ``from_pretrained``.

    Args:
        name: one of ``CONTROLS``, which are the keys of the classes.

    Raises:
        ValueError: the zoo has no such control.
    """
    if name not in CONTROLS:
        raise ValueError(f"the zoo has the controls {', '.join(CONTROLS)}; it has no {name!r}")
    return WEIGHTS / "controls" / f"{name}.safetensors"


def image_encoder_folder() -> Path:
    """The picture encoder of the image prompt: a folder for ``CLIPVisionModelWithProjection.from_pretrained``."""
    return WEIGHTS / "controls" / "image_encoder"
