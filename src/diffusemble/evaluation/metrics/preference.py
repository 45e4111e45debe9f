"""Scores learned from people's choices between pictures, on CLIP ViT-H/14: PickScore and HPS v2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from diffusemble.evaluation.metrics.base import Against, Device, Kind
from diffusemble.evaluation.metrics.clip import CLIP_L, Clip, load_tokenizer
from diffusemble.evaluation.metrics.open_clip import VIT_H_14, transformers_keys
from diffusemble.evaluation.metrics.pixels import Preparation
from diffusemble.evaluation.metrics.weights import Published, fill, read_tensors


class PickScore:
    """Logit scale × cosine under PickScore's CLIP-H (Kirstain et al. 2023), about 15 to 25; higher is better."""

    kind: ClassVar[Kind] = "image"
    higher_is_better: ClassVar[bool] = True
    against: ClassVar[Against] = "prompt"
    weights: ClassVar[Published] = Published("PickScore_v1", "yuvalkirstain/PickScore_v1")

    def __init__(self, clip: Clip) -> None:
        self.clip = clip

    @classmethod
    def load(cls, weights: Path | None = None, device: Device = "cpu") -> PickScore:
        """With the published weights."""
        from transformers import CLIPModel

        model = CLIPModel.from_pretrained(cls.weights.find(weights))
        return cls(Clip.around(model, load_tokenizer(CLIP_L.find(weights)), device))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores ``[b]`` of images ``[b 3 h w]`` in [0, 1] with their prompts."""
        return self.clip.scale * self.clip.cosines(images, prompts)


class HPSv2:
    """100 × cosine under the CLIP-H of HPS v2 (Wu et al. 2023), as its tables print it; higher is better.

    Pictures that are not square are padded with black, as the authors' code does, not cropped.
    """

    kind: ClassVar[Kind] = "image"
    higher_is_better: ClassVar[bool] = True
    against: ClassVar[Against] = "prompt"
    weights: ClassVar[Published] = Published("HPS_v2_compressed.pt", "xswu/HPSv2", "HPS_v2_compressed.pt")

    def __init__(self, clip: Clip) -> None:
        self.clip = replace(clip, prepare=Preparation(clip.prepare.size, fit="pad"))

    @classmethod
    def load(cls, weights: Path | None = None, device: Device = "cpu") -> HPSv2:
        """With the published weights, read from open_clip's names."""
        file = cls.weights.find(weights)
        tokenizer = load_tokenizer(CLIP_L.find(weights))
        return cls.of(read_tensors(file), VIT_H_14, tokenizer, str(file), device)

    @classmethod
    def of(
        cls, tensors: Mapping[str, Tensor], config: Mapping[str, object], tokenizer: object, source: str, device: Device
    ) -> HPSv2:
        """Around tensors under open_clip's names, for a CLIP of the given configuration."""
        from transformers import CLIPConfig, CLIPModel

        model = CLIPModel(CLIPConfig(**config))
        fill(model, transformers_keys(tensors, source), source)
        return cls(Clip.around(model, tokenizer, device))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores ``[b]`` of images ``[b 3 h w]`` in [0, 1] with their prompts."""
        return 100 * self.clip.cosines(images, prompts)


class HPSv21(HPSv2):
    """The same with the weights of version 2.1; its numbers are higher and not comparable with those of 2.0."""

    weights = Published("HPS_v2.1_compressed.pt", "xswu/HPSv2", "HPS_v2.1_compressed.pt")
