"""Prompt match (zoo) as a metric; what it is stands in ``diffusemble.evaluation.prompt_match``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from diffusemble.evaluation.features import AllNets
from diffusemble.evaluation.metrics.base import Against, Device, Kind
from diffusemble.evaluation.prompt_match import PromptMatch, SentenceEncoder


class PromptMatchScore:
    """Scale × cosine of picture and caption under the zoo's own dual encoder; higher is better."""

    kind: ClassVar[Kind] = "image"
    higher_is_better: ClassVar[bool] = True
    against: ClassVar[Against] = "prompt"

    def __init__(self, heads: PromptMatch, nets: AllNets, sentences: SentenceEncoder) -> None:
        self.heads, self.nets, self.sentences = heads, nets, sentences

    @classmethod
    def load(cls, weights: Path | None = None, device: Device = "cpu") -> PromptMatchScore:
        """With the shipped heads and the nets of installed packages; ``weights`` is not used."""
        return cls(PromptMatch.load(), AllNets(device), SentenceEncoder())

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores ``[b]`` of images ``[b 3 h w]`` in [0, 1] with their captions."""
        return self.heads.score(self.nets(images), self.sentences(prompts))
