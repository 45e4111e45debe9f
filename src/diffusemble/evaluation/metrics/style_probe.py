"""Style probe (zoo): is a picture in the style its caption names? A linear probe on ImageNet features.

Trained by recipes/zoo/style_probe.py on emoji art in six styles. It knows these styles and nothing else; its own
accuracy on things it has not seen is in the header of its weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffusemble.evaluation.convnets import WIDTH
from diffusemble.evaluation.features import NETS, AllNets
from diffusemble.evaluation.heads import load_head, read_report, save_head
from diffusemble.evaluation.metrics.base import Against, Device, Kind

HEADS = Path(__file__).parents[1] / "weights" / "style_probe.safetensors"
STAGE, REPORT_KEY = "style_probe", "diffusemble.style_probe"
STYLE = re.compile(r"(?:^|,\s*)([^,]+?) style\s*$", re.IGNORECASE)


class StyleProbe(nn.Module):
    """One linear layer on standardised features ``[b 2560]``.

    Args:
        styles: names, in the order of the layer's rows.
    """

    center: Tensor
    spread: Tensor

    def __init__(self, styles: Sequence[str]) -> None:
        super().__init__()
        wide = WIDTH * len(NETS)
        self.styles = tuple(styles)
        self.register_buffer("center", torch.zeros(wide))
        self.register_buffer("spread", torch.ones(wide))
        self.layer = nn.Linear(wide, len(self.styles))

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``[b styles]`` of features ``[b 2560]``."""
        logits: Tensor = self.layer((features - self.center) / self.spread)
        return logits

    @torch.no_grad()
    def probabilities(self, features: Tensor) -> Tensor:
        """Probability ``[b styles]`` of every style."""
        return self(features).softmax(dim=1)

    def score(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """Probability ``[b]`` of the style that each picture's own prompt names.

        Raises:
            ValueError: a prompt names no style, or one the probe does not know.
        """
        asked = torch.tensor([self.styles.index(self.style_of(prompt)) for prompt in prompts])
        return self.probabilities(features).gather(1, asked[:, None]).squeeze(1)

    def style_of(self, prompt: str) -> str:
        """``"strawberry, noto style"`` → ``"noto"``."""
        found = STYLE.search(prompt)
        if found is None or found[1].lower() not in self.styles:
            raise ValueError(
                f"The style probe reads captions that end in a style, like 'strawberry, {self.styles[0]} style'; got "
                f"{prompt!r}. Name one of: {', '.join(self.styles)}."
            )
        return found[1].lower()

    def save(self, file: Path, report: Mapping[str, Any]) -> None:
        """Write float16 weights, with the styles and how good the probe is in the header."""
        save_head(self, file, REPORT_KEY, {**report, "styles": list(self.styles)})

    @classmethod
    def load(cls, file: Path = HEADS) -> StyleProbe:
        """Read what ``save`` wrote; the shipped probe by default.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return load_head(cls(read_report(file, REPORT_KEY, STAGE)["styles"]), file, STAGE)


def published_accuracy(file: Path = HEADS) -> dict[str, Any]:
    """How good the probe in ``file`` was on pictures it had not seen, and its styles."""
    return read_report(file, REPORT_KEY, STAGE)


class StyleProbeScore:
    """Probability of the caption's style, from 0 to 1; higher is better."""

    kind: ClassVar[Kind] = "image"
    higher_is_better: ClassVar[bool] = True
    against: ClassVar[Against] = "prompt"

    def __init__(self, probe: StyleProbe, nets: AllNets) -> None:
        self.probe, self.nets = probe, nets

    @classmethod
    def load(cls, weights: Path | None = None, device: Device = "cpu") -> StyleProbeScore:
        """With the shipped probe and the nets of installed packages; ``weights`` is not used."""
        return cls(StyleProbe.load(), AllNets(device))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Probabilities ``[b]`` of images ``[b 3 h w]`` in [0, 1] with their captions."""
        return self.probe.score(self.nets(images), prompts)
