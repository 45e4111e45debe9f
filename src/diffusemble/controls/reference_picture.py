"""A picture as IP-Adapter sees it: an embedding of an image encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImagePromptCondition:
    """A picture to draw alike, for the entry ``image_prompt`` of ``cross_attention_kwargs``.

    Attributes:
        embeds: image embeddings ``[k d]``; usually one, several pictures act together.
        scale: weight of the picture against the text; 0 is the plain U-Net.

    Raises:
        ValueError: the embeddings have another shape.
    """

    embeds: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.embeds.ndim != 2 or not len(self.embeds):
            raise ValueError(
                f"An image prompt is one embedding per picture, [k d]; got {list(self.embeds.shape)}. Make it with "
                f"image_prompt_condition(image, encoder)."
            )


@torch.no_grad()
def image_prompt_condition(
    image: Image.Image | Sequence[Image.Image],
    encoder: Any,
    processor: Any,
    scale: float = 1.0,
    device: torch.device | None = None,
) -> ImagePromptCondition:
    """Read a picture with CLIP's image encoder.

    Args:
        image: one picture, or several that act together.
        encoder: ``CLIPVisionModelWithProjection``; ViT-H/14 for the published weights.
        processor: its image processor; transformers' ``CLIPImageProcessorPil`` needs no torchvision.
        scale: weight of the picture against the text.
        device: where the encoder computes, if it does not rest there.

    Raises:
        ValueError: the encoder gives no projected embedding, or there are no pictures.
    """
    images = [image] if isinstance(image, Image.Image) else list(image)
    if not images:
        raise ValueError("An image prompt needs at least one picture. Give one, or leave the image prompt out.")
    pixels = processor(images=[one.convert("RGB") for one in images], return_tensors="pt")["pixel_values"]
    output = encoder(pixels.to(device or encoder.device, encoder.dtype))
    if not hasattr(output, "image_embeds"):
        raise ValueError(
            f"IP-Adapter reads projected image embeddings, and {type(encoder).__name__} gives none. Use "
            f"CLIPVisionModelWithProjection, or make ImagePromptCondition(embeds) from another encoder's embedding."
        )
    return ImagePromptCondition(output.image_embeds, scale)
