"""CLIP: cosines between pictures, and between pictures and prompts (Radford et al. 2021, arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusemble.evaluation.metrics.base import Against, Device, Kind
from diffusemble.evaluation.metrics.pixels import CLIP_MEAN, CLIP_STD, Preparation, checked
from diffusemble.evaluation.metrics.weights import Published

CLIP_L = Published("clip-vit-large-patch14", "openai/clip-vit-large-patch14")
CLIP_L_336 = Published("clip-vit-large-patch14-336", "openai/clip-vit-large-patch14-336")


@dataclass(frozen=True)
class Clip:
    """A CLIP model with what goes before it.

    Attributes:
        model: a ``transformers.CLIPModel``.
        tokenizer: its tokenizer; may be None where only pictures are looked at.
        prepare: images to pixel values.
        device: where the model runs; embeddings come back to the CPU.
    """

    model: Any
    tokenizer: Any
    prepare: Preparation
    device: Device = "cpu"

    @classmethod
    def load(cls, source: Published = CLIP_L, weights: Path | None = None, device: Device = "cpu") -> Clip:
        """A published model with its own tokenizer.

        Raises:
            FileNotFoundError: it is neither in the folder nor in the hub's cache.
        """
        from transformers import CLIPModel

        folder = source.find(weights)
        return cls.around(CLIPModel.from_pretrained(folder), load_tokenizer(folder), device)

    @classmethod
    def around(cls, model: Any, tokenizer: Any, device: Device = "cpu") -> Clip:
        """A model in memory, frozen and moved to the device in float32, at its own resolution."""
        frozen = model.requires_grad_(False).eval().to(device, torch.float32)
        return cls(frozen, tokenizer, Preparation(model.config.vision_config.image_size), device)

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Unit embeddings ``[b d]`` of images ``[b 3 h w]`` in [0, 1]."""
        return self.pixels(self.prepare(images))

    def pixels(self, values: Tensor) -> Tensor:
        """Unit embeddings ``[b d]`` of prepared pixel values."""
        found = self.model.get_image_features(pixel_values=values.to(self.device))
        return F.normalize(_embedding(found).float(), dim=1).cpu()

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Unit embeddings ``[b d]`` of prompts; what is longer than the model reads is cut off."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        # Without the mask: the text tower is causal, so what follows the end of a prompt cannot change it.
        found = self.model.get_text_features(input_ids=tokens["input_ids"].to(self.device))
        return F.normalize(_embedding(found).float(), dim=1).cpu()

    def cosines(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine ``[b]`` of every image with its own prompt."""
        return (self.images(images) * self.texts(prompts)).sum(dim=1)

    @property
    def scale(self) -> float:
        """Learned scale of the cosine."""
        return float(self.model.logit_scale.exp())


def load_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer from a folder."""
    from transformers import CLIPTokenizerFast

    return CLIPTokenizerFast.from_pretrained(folder)


def _embedding(found: Any) -> Tensor:
    # transformers 5 returns an object, transformers 4 the tensor itself.
    embedding: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return embedding


class ClipT:
    """Cosine between picture and prompt, CLIP ViT-L/14; higher is better."""

    kind: ClassVar[Kind] = "image"
    higher_is_better: ClassVar[bool] = True
    against: ClassVar[Against] = "prompt"

    def __init__(self, clip: Clip) -> None:
        self.clip = clip

    @classmethod
    def load(cls, weights: Path | None = None, device: Device = "cpu") -> ClipT:
        """With the published weights."""
        return cls(Clip.load(CLIP_L, weights, device))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosines ``[b]`` of images ``[b 3 h w]`` in [0, 1] with their prompts."""
        return self.clip.cosines(images, prompts)


class ClipI:
    """Cosine between picture and real picture of the same prompt, CLIP ViT-L/14; higher is better."""

    kind: ClassVar[Kind] = "image"
    higher_is_better: ClassVar[bool] = True
    against: ClassVar[Against] = "picture"

    def __init__(self, clip: Clip) -> None:
        self.clip = clip

    @classmethod
    def load(cls, weights: Path | None = None, device: Device = "cpu") -> ClipI:
        """With the published weights."""
        return cls(Clip.load(CLIP_L, weights, device))

    def __call__(self, images: Tensor, references: Tensor) -> Tensor:
        """Cosines ``[b]`` of images and references, each ``[b 3 h w]`` in [0, 1]; sizes may differ.

        Raises:
            ValueError: their numbers differ.
        """
        if len(images) != len(references):
            raise ValueError(
                f"Every picture is compared with its own real picture; got {len(images)} pictures and "
                f"{len(references)} real ones. Give one for each."
            )
        return (self.clip.images(images) * self.clip.images(references)).sum(dim=1)


class ClipFeatures:
    """Unit features for CMMD: CLIP ViT-L/14 at 336 pixels, both sides resized without antialiasing, as published."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip

    @classmethod
    def load(cls, weights: Path | None = None, device: Device = "cpu") -> ClipFeatures:
        """With the published weights."""
        return cls(Clip.load(CLIP_L_336, weights, device))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features ``[b d]`` of images ``[b 3 h w]`` in [0, 1]."""
        size = self.clip.prepare.size
        sized = F.interpolate(checked(images), (size, size), mode="bicubic")
        return self.clip.pixels(Preparation(size, CLIP_MEAN, CLIP_STD).normalise(sized))
