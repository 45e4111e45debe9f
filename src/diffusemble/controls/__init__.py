"""Trained weights beside a U-Net, that make it obey boxes, relations or a reference picture."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Control": "base",
    "ControlledUNet": "base",
    "pipeline_with": "pipelines",
    "plain_unet": "layouts",
    "Interaction": "interaction",
    "InteractionCondition": "interaction",
    "Relation": "interaction",
    "interaction_condition": "interaction",
    "Gligen": "gligen",
    "GligenCondition": "gligen",
    "gligen_condition": "gligen",
    "Migc": "migc",
    "MigcCondition": "migc",
    "migc_condition": "migc",
    "ImagePrompt": "image_prompt",
    "ImagePromptCondition": "image_prompt",
    "image_prompt_condition": "image_prompt",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import public names on first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'diffusemble.controls' has no attribute {name!r}")
    return getattr(import_module(f"diffusemble.controls.{_PUBLIC[name]}"), name)
