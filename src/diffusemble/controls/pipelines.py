"""Pipelines with controls that share everything with the pipeline that they come from."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from diffusemble.controls.base import Control, ControlledUNet


def pipeline_with(pipe: Any, controls: Sequence[Control]) -> Any:
    """Another pipeline of the same class whose U-Net obeys controls.

    Nothing is loaded or copied: both pipelines share their U-Net, which has the controls for the time of a call of the
    new one only, and every other part. Only the scheduler is the new pipeline's own, since it keeps count of steps.

    Args:
        pipe: a Stable Diffusion 1.x pipeline with a U-Net; its call takes ``cross_attention_kwargs``.
        controls: with different keys; those that the pipeline's U-Net obeys already stay.

    Raises:
        ValueError: the pipeline has no U-Net or takes no ``cross_attention_kwargs``, or two controls have one key.
    """
    unet = getattr(pipe, "unet", None)
    if unet is None or "cross_attention_kwargs" not in inspect.signature(type(pipe).__call__).parameters:
        raise ValueError(
            f"Controls get their conditions in cross_attention_kwargs, and act in a U-Net; {type(pipe).__name__} has "
            f"no {'unet' if unet is None else 'such argument'}. Use a Stable Diffusion 1.x pipeline."
        )
    if isinstance(unet, ControlledUNet):
        unet, controls = unet.unet, [*unet.controls, *controls]
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    parts = {**pipe.components, "scheduler": scheduler, "unet": ControlledUNet(unet, controls)}
    taken = inspect.signature(type(pipe)).parameters.keys()
    settings = {name: pipe.config[name] for name in taken & pipe.config.keys() - parts.keys()}
    made = type(pipe)(**{name: part for name, part in parts.items() if name in taken}, **settings)
    made.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    return made
