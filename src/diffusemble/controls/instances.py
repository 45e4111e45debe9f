"""What MIGC draws: instances with phrases and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffusemble.controls.boxes import check_box
from diffusemble.controls.migc_masks import Masks, picture_masks, together

MOST_REPEATS = 7


@dataclass(frozen=True, eq=False)
class MigcCondition:
    """Instances of one picture, for the entry ``migc`` of ``cross_attention_kwargs``.

    Attributes:
        text: embeddings of the n phrases ``[n s d]``.
        pooled: the same as one vector each ``[n d]``.
        boxes: ``[n 4]`` as x1, y1, x2, y2, shares of the picture.
        height: of the picture in pixels.
        width: of the picture in pixels.
        until: share of the schedule, from noise on, in which MIGC works; the published scripts take 26 of 50 steps.
        fuse_until: share in which all other cross-attentions weigh the texts by their masks, without trained weights.
        text_scale: factor of what a phrase gives in its box, one for all or one each.
        enhancement_scale: factor of what MIGC adds to it.
        weight_scale: factor of the map that decides how much of an instance is seen.
        slots: which of the places for instances each takes: ``[n]``, or ``[layers n]`` in running order of the layers;
            0, 1, 2, ... by default.

    Raises:
        ValueError: the sizes contradict each other, a box is none or covers no pixel, two instances share a slot, or a
            share is none.
    """

    text: Tensor
    pooled: Tensor
    boxes: Tensor
    height: int
    width: int
    until: float = 0.5
    fuse_until: float = 0.0
    text_scale: float | Sequence[float] = 1.0
    enhancement_scale: float | Sequence[float] = 1.0
    weight_scale: float | Sequence[float] = 1.0
    slots: Tensor | None = None
    _masks: dict[Any, Masks] = field(default_factory=dict, init=False, repr=False)
    _together: dict[Any, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        n = len(self.boxes)
        shapes = [tuple(part.shape) for part in (self.text, self.pooled, self.boxes)]
        if [len(shape) for shape in shapes] != [3, 2, 2] or any(shape[0] != n for shape in shapes):
            raise ValueError(
                f"MIGC takes n instances: text [n s d], pooled [n d], boxes [n 4]; got the shapes {shapes}. Make the "
                f"condition with migc_condition(pipe, instances)."
            )
        for number, box in enumerate(self.boxes.tolist(), 1):
            self._check_pixels(check_box(box, f"instance {number}"), number)
        slots = self.slot_rows()
        if slots.shape[-1] != n or any(len(set(row)) < n for row in slots.tolist()) or (slots < 0).any():
            raise ValueError(
                f"Slots are n different numbers from 0, [n] or [layers n], for {n} instances; got {slots.tolist()}."
            )
        for name in ("until", "fuse_until"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share of the schedule, 0 to 1; got {getattr(self, name):g}.")
        self.scale_rows()

    def _check_pixels(self, box: tuple[float, ...], number: int) -> None:
        if (box[2] - box[0]) * self.width < 1 or (box[3] - box[1]) * self.height < 1:
            raise ValueError(
                f"The box of instance {number} is smaller than a pixel of {self.width} x {self.height}: {list(box)}. "
                f"Give boxes as shares of the picture, 0 to 1."
            )

    def slot_rows(self) -> Tensor:
        """Slots ``[1 n]``, or ``[layers n]``."""
        slots = torch.arange(len(self.boxes)) if self.slots is None else self.slots.long().cpu()
        return slots if slots.ndim == 2 else slots.unsqueeze(0)

    def scale_rows(self) -> Tensor:
        """Scales of text, enhancement and weight of every instance ``[n 3]``.

        Raises:
            ValueError: a scale has another number of values than there are instances.
        """
        n, columns = len(self.boxes), []
        for name in ("text_scale", "enhancement_scale", "weight_scale"):
            scale = getattr(self, name)
            values = list(scale) if isinstance(scale, Sequence) else [scale] * n
            if len(values) != n:
                raise ValueError(f"{name} has one value for all instances or one each; got {len(values)} for {n}.")
            columns.append(torch.tensor(values, dtype=torch.float32))
        return torch.stack(columns, dim=-1)

    def masks(self, latents: tuple[int, int], grid: tuple[int, int], device: torch.device) -> Masks:
        """Masks of this picture on a grid of features, reckoned once.

        Raises:
            ValueError: the latents have other proportions than the picture.
        """
        if self.height * latents[1] != self.width * latents[0]:
            raise ValueError(
                f"MIGC's condition is for {self.width} x {self.height} pixels, and latents of {latents[1]} x "
                f"{latents[0]} came. Make the condition for the picture's size."
            )
        key = latents, grid, device
        if key not in self._masks:
            made = picture_masks(self.boxes, (self.height, self.width), latents, grid)
            self._masks[key] = Masks(made.instances.to(device), made.rest.to(device), grid)
        return self._masks[key]

    def together(self, latents: tuple[int, int], grid: tuple[int, int], device: torch.device) -> Tensor:
        """Which places of this picture see each other ``[1 1 l l]``, reckoned once."""
        key = latents, grid, device
        if key not in self._together:
            self._together[key] = together(self.masks(*key))
        return self._together[key]


@torch.no_grad()
def migc_condition(
    pipe: Any,
    instances: Sequence[tuple[str, Sequence[float]]],
    height: int | None = None,
    width: int | None = None,
    until: float = 0.5,
    repeat_phrases: bool = False,
) -> MigcCondition:
    """Read instances with a pipeline's own tokenizer and text encoder.

    Args:
        pipe: a Stable Diffusion 1.x pipeline.
        instances: phrase, and box as x1, y1, x2, y2 in shares of the picture.
        height: of the picture in pixels; the pipeline's default by default.
        width: of the picture in pixels; the pipeline's default by default.
        until: share of the schedule in which MIGC works. Other options: ``dataclasses.replace(condition, ...)``.
        repeat_phrases: say each phrase as often as there are instances (at most seven times), which helps the published
            weights to keep many instances apart.

    Returns:
        The condition of one picture; it may have no instances.

    Raises:
        ValueError: a phrase is empty or too long for the text encoder, or a box is none.
    """
    for number, (phrase, box) in enumerate(instances, 1):
        if not phrase.strip():
            raise ValueError(f"Every instance needs a phrase; that of instance {number} is empty. Say what is there.")
        check_box(box, repr(phrase))
    repeats = min(len(instances), MOST_REPEATS) if repeat_phrases else 1
    text, pooled = _encode(pipe, [", and ".join([phrase] * repeats) for phrase, _ in instances])
    default = pipe.unet.config.sample_size * pipe.vae_scale_factor
    boxes = torch.tensor([list(box) for _, box in instances], dtype=torch.float32).reshape(-1, 4)
    return MigcCondition(text, pooled, boxes, height or default, width or default, until)


def _encode(pipe: Any, phrases: list[str]) -> tuple[Tensor, Tensor]:
    tokenizer, encoder = pipe.tokenizer, pipe.text_encoder
    most = tokenizer.model_max_length
    for phrase in phrases:
        count = len(tokenizer(phrase).input_ids)
        if count > most:
            raise ValueError(
                f"The text encoder reads {most} tokens, and {phrase!r} has {count}. Shorten the phrase, or do not "
                f"repeat phrases."
            )
    if not phrases:
        width = encoder.config.hidden_size
        return torch.zeros(0, most, width), torch.zeros(0, width)
    tokens = tokenizer(phrases, padding="max_length", max_length=most, truncation=True, return_tensors="pt")
    masked = getattr(encoder.config, "use_attention_mask", False)
    mask = tokens.attention_mask.to(pipe.device) if masked else None
    output = encoder(tokens.input_ids.to(pipe.device), attention_mask=mask)
    return output.last_hidden_state, output.pooler_output
