"""Working memory of a U-Net with controls, counted on the meta device with conditions that say nothing."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from diffusemble.blocks.example import CLIP_PROMPT, example
from diffusemble.controls.base import TIMESTEPS, Control, ControlledUNet
from diffusemble.controls.image_prompt import ImagePrompt
from diffusemble.controls.instances import MigcCondition
from diffusemble.controls.migc import Migc
from diffusemble.controls.reference_picture import ImagePromptCondition
from diffusemble.memory.bundle import weights_of
from diffusemble.memory.live import peak_bytes

PIXELS = 8
"""Of a latent's side: all controls are for Stable Diffusion 1.x."""


def measure_controlled(unet: ControlledUNet, latents: tuple[int, int], pictures: int, rows: int, things: int) -> int:
    """Most bytes of tensors that are alive at once while a U-Net draws with its controls at work.

    Args:
        unet: of which a twin without numbers is run.
        latents: height and width.
        pictures: at a time.
        rows: of the batch; twice the pictures with guidance.
        things: in boxes, of every picture.
    """
    weights = {id(weight): weight for weight in weights_of([unet])}
    twin = copy.deepcopy(unet, {key: _without_numbers(weight) for key, weight in weights.items()})
    with torch.device("cpu"):  # boxes and slots are read
        call = example(twin.unet, latents, rows)
        told: dict[str, Any] = {one.key: _conditions(one, latents, pictures, rows, things) for one in twin.controls}
        given = {**call.inputs, "cross_attention_kwargs": {**told, "guided": False}}
        return peak_bytes(lambda: twin(call.sample, TIMESTEPS - 1, **given))


def _without_numbers(weight: torch.Tensor) -> torch.Tensor:
    empty = weight.detach().to("meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(weight, nn.Parameter) else empty


def _conditions(control: Control, latents: tuple[int, int], pictures: int, rows: int, things: int) -> list[Any]:
    """For every row; without guidance every row is a picture."""
    like = next(control.parameters())
    if isinstance(control, ImagePrompt):
        return [ImagePromptCondition(like.new_zeros(1, control.projection.image_embeds.in_features))] * rows
    if not isinstance(control, Migc):
        return [None] * rows  # gated layers see all their slots, whatever is in them
    width = control.layers[0].sizes.context
    height, across = (PIXELS * side for side in latents)
    phrases = like.new_zeros(things, CLIP_PROMPT, width), like.new_zeros(things, width)
    told = MigcCondition(*phrases, torch.tensor([[0.0, 0.0, 1.0, 1.0]] * things).reshape(-1, 4), height, across, 1.0)
    return [*[None] * (rows - pictures), *[told] * pictures]
