"""Trains the scorer "style probe (zoo)": one linear layer from picture features to the six styles.

It learns from all icons, as they are and moved and softened, except the pairs and the concepts that the split of
`data.py` holds out; those say how good it is. The penalty is chosen on a tenth of the concepts it may learn from.
`python -m recipes.zoo style_probe` takes about a minute once the features of the prompt match are there.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusemble.evaluation.metrics.style_probe import HEADS, StyleProbe
from recipes.zoo.data import STYLES, fraction, split_of
from recipes.zoo.prompt_match import picture_features, read_names
from recipes.zoo.settings import WORK

PENALTIES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
CHOSEN_ON = 0.1  # of the concepts that may be learned from
ITERATIONS = 60
log = logging.getLogger("recipes.zoo")


@dataclass(frozen=True)
class Material:
    """Features `[c 6 v 2560]` of c concepts in 6 styles and v variants, with their split and their concept's name."""

    pictures: Tensor
    splits: list[list[str]]
    names: list[str]

    def where(self, split: str) -> Tensor:
        """Which pictures belong to a split, bool `[c 6]`."""
        return torch.tensor([[found == split for found in row] for row in self.splits])


def load(work: Path) -> Material:
    """Features, splits and names of all icons."""
    listed = read_names(work)
    names = [texts[0] for texts in listed.texts]
    splits = [[split_of(name, style) for style in STYLES] for name in names]
    return Material(picture_features(work, listed.codes), splits, names)


def choose(pictures: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Features `[m 2560]` and styles `[m]` of the pictures in `wanted [c 6]`, all variants."""
    style = torch.arange(len(STYLES)).expand_as(wanted)[wanted]
    return pictures[wanted].flatten(0, 1).float(), style.repeat_interleave(pictures.shape[2])


def fit(features: Tensor, styles: Tensor, penalty: float) -> StyleProbe:
    """Multinomial logistic regression on standardised features, with `penalty` on the squared weights.

    The loss is convex, so the result depends on nothing random.
    """
    probe = StyleProbe(tuple(STYLES))
    probe.center.copy_(features.mean(dim=0))
    probe.spread.copy_(features.std(dim=0) + 1e-3)
    torch.nn.init.zeros_(probe.layer.weight)
    torch.nn.init.zeros_(probe.layer.bias)
    inputs = (features - probe.center) / probe.spread
    optimizer = torch.optim.LBFGS(probe.layer.parameters(), max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(probe.layer(inputs), styles) + penalty * probe.layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return probe.eval()


def best_penalty(material: Material) -> float:
    """The penalty with the lowest loss on concepts kept from learning for this."""
    kept = torch.tensor([fraction(f"style probe:{name}") < CHOSEN_ON for name in material.names])[:, None]
    trained = material.where("train")
    learn, judge = (choose(material.pictures, trained & part) for part in (~kept, kept))
    losses = {}
    for penalty in PENALTIES:
        with torch.no_grad():
            losses[penalty] = F.cross_entropy(fit(*learn, penalty)(judge[0]), judge[1]).item()
    log.info("style probe: %s", ", ".join(f"{loss:.3f} at {penalty:g}" for penalty, loss in losses.items()))
    return min(losses, key=lambda penalty: losses[penalty])


@torch.no_grad()
def accuracy(probe: StyleProbe, pictures: Tensor, wanted: Tensor) -> dict[str, float]:
    """Share of right styles, and the mean probability of the right style, over the pictures in `wanted [c 6]`."""
    features, styles = choose(pictures, wanted)
    found = probe.probabilities(features)
    right = (found.argmax(dim=1) == styles).float().mean().item()
    sure = found.gather(1, styles[:, None]).mean().item()
    return {"pictures": len(styles), "right": round(right, 4), "probability": round(sure, 4)}


def _single_styles() -> list[tuple[str, Tensor]]:
    """Every style with the mask `[1 6]` of its column."""
    return [(style, row[None]) for style, row in zip(STYLES, torch.eye(len(STYLES), dtype=torch.bool), strict=True)]


def make(work: Path = WORK, target: Path = HEADS) -> None:
    """Write the shipped probe, with its accuracy on pictures it has not seen."""
    material = load(work)
    probe = fit(*choose(material.pictures, material.where("train")), best_penalty(material))
    clean, soft = material.pictures[:, :, :1], material.pictures[:, :, 1:]
    concept, pair, train = (material.where(split) for split in ("concept", "pair", "train"))
    each = {style: accuracy(probe, clean, concept & only) for style, only in _single_styles()}
    report = {
        "held-out concepts": accuracy(probe, clean, concept),
        "held-out concepts by style": {style: found["right"] for style, found in each.items()},
        "held-out concepts, softened": accuracy(probe, soft, concept),
        "held-out pairs": accuracy(probe, clean, pair),
        "seen pictures": accuracy(probe, clean, train),
    }
    probe.save(target, report)
    log.info("style probe: %s", json.dumps(report))
