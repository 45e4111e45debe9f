"""Scene probe (zoo): which thing is on a crop, and in which style; two linear layers on ImageNet features.

Trained by recipes/zoo/scenes/probe.py on crops of composed scenes, as they are and through the zoo's autoencoder. It
knows the things and styles of those scenes and nothing else; its own accuracy is in the header of its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusemble.evaluation.convnets import WIDTH
from diffusemble.evaluation.features import NETS
from diffusemble.evaluation.heads import load_head, read_report, save_head

HEADS = Path(__file__).parents[1] / "weights" / "scene_probe.safetensors"
STAGE, REPORT_KEY = "scenes.probe", "diffusemble.scene_probe"


class SceneProbe(nn.Module):
    """Two linear layers on standardised features ``[b 2560]`` of crops.

    Args:
        things: names, in the order of the first layer's rows.
        styles: names, in the order of the second one's.
    """

    center: Tensor
    spread: Tensor

    def __init__(self, things: Sequence[str], styles: Sequence[str]) -> None:
        super().__init__()
        wide = WIDTH * len(NETS)
        self.names, self.styles = tuple(things), tuple(styles)
        self.register_buffer("center", torch.zeros(wide))
        self.register_buffer("spread", torch.ones(wide))
        self.thing = nn.Linear(wide, len(self.names))
        self.style = nn.Linear(wide, len(self.styles))

    @torch.no_grad()
    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``[b things]`` and ``[b styles]`` of features ``[b 2560]``."""
        standard = (features - self.center) / self.spread
        things, styles = self.thing(standard).log_softmax(dim=1), self.style(standard).log_softmax(dim=1)
        return things, styles

    def save(self, file: Path, report: Mapping[str, Any]) -> None:
        """Write float16 weights, with the names and how good the probe is in the header."""
        save_head(self, file, REPORT_KEY, {**report, "things": list(self.names), "styles": list(self.styles)})

    @classmethod
    def load(cls, file: Path = HEADS) -> SceneProbe:
        """Read what ``save`` wrote; the shipped probe by default.

        Raises:
            FileNotFoundError: there is no such file.
        """
        report = read_report(file, REPORT_KEY, STAGE)
        return load_head(cls(report["things"], report["styles"]), file, STAGE)


def published_accuracy(file: Path = HEADS) -> dict[str, Any]:
    """How good the probe in ``file`` was on scenes it had not seen, with its things and styles."""
    return read_report(file, REPORT_KEY, STAGE)
