"""Trains the scorer "scene probe (zoo)": the thing and the style of a crop, by two linear layers on picture features.

It learns from finds in composed training scenes, as they are and through the autoencoder; held-out scenes, whose pairs
of things or colours it has not seen, say how good it is. `python -m recipes.zoo scenes.probe` takes a few minutes.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from diffusemble.evaluation.features import AllNets
from diffusemble.evaluation.scenes.boxes import iou
from diffusemble.evaluation.scenes.finds import finds
from diffusemble.evaluation.scenes.probe import HEADS, SceneProbe
from diffusemble.evaluation.scenes.scene import Scene
from recipes.zoo.data import STYLES
from recipes.zoo.scenes.compose import Icons, options
from recipes.zoo.scenes.data import Scenes, pictures
from recipes.zoo.settings import WORK

SCENES = 1500  # to learn from; every other one through the autoencoder, the rest as they are
PENALTY, ITERATIONS, NEAR = 3e-3, 60, 0.7
log = logging.getLogger("recipes.zoo")


@dataclass(frozen=True)
class Crops:
    """Features `[m 2560]` of finds, with the numbers of their things and styles `[m]`."""

    features: Tensor
    things: Tensor
    styles: Tensor


@torch.no_grad()
def decoded(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pictures `[n 3 h w]` in [0, 1] of scaled latents."""
    drawn = [vae.decode(part / vae.config.scaling_factor).sample for part in latents.split(32)]
    return ((torch.cat(drawn).clamp(-1, 1) + 1) / 2).float()


def crops_of(images: Tensor, asked: list[Scene], nets: AllNets) -> Crops:
    """The find nearest each asked box, where there is a near one."""
    names, found, things, styles = options()["things"], [], [], []
    for image, scene in zip(images, asked, strict=True):
        every = finds(image)
        for thing in scene.things:
            best = max(every, key=lambda find: iou(find.box, thing.box), default=None)
            if best is not None and iou(best.box, thing.box) >= NEAR:
                found.append(best.crop)
                things.append(names.index(thing.name))
                styles.append(list(STYLES).index(scene.style))
    return Crops(nets(torch.stack(found)), torch.tensor(things), torch.tensor(styles))


def fit(crops: Crops) -> SceneProbe:
    """Multinomial logistic regressions on standardised features; convex, so nothing in it is random."""
    probe = SceneProbe(options()["things"], tuple(STYLES))
    probe.center.copy_(crops.features.mean(dim=0))
    probe.spread.copy_(crops.features.std(dim=0) + 1e-3)
    inputs = (crops.features - probe.center) / probe.spread
    for layer, wanted in ((probe.thing, crops.things), (probe.style, crops.styles)):
        regress(layer, inputs, wanted)
    return probe.eval()


def regress(layer: nn.Linear, inputs: Tensor, wanted: Tensor) -> None:
    """Fit one layer in place."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(inputs), wanted) + PENALTY * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)


def accuracy(probe: SceneProbe, crops: Crops) -> dict[str, float]:
    """Share of crops whose thing, and whose style, is right."""
    things, styles = probe(crops.features)
    right = [(found.argmax(dim=1) == want).float().mean().item()
             for found, want in ((things, crops.things), (styles, crops.styles))]  # fmt: skip
    return {"crops": len(crops.things), "thing": round(right[0], 4), "style": round(right[1], 4)}


def make(work: Path = WORK, target: Path = HEADS) -> None:
    """Write the shipped probe, with its accuracy on held-out scenes."""
    icons, nets, vae = Icons.load(work), AllNets(), AutoencoderKL.from_pretrained(work / "vae")
    train, held = Scenes.load(work, "train"), Scenes.load(work, "held")
    plain, soft = range(0, SCENES, 2), range(1, SCENES, 2)
    parts = [
        crops_of(pictures([train.scenes[i] for i in plain], icons) / 255, [train.scenes[i] for i in plain], nets),
        crops_of(decoded(vae, train.latents[list(soft)]), [train.scenes[i] for i in soft], nets),
    ]
    probe = fit(Crops(*(torch.cat([getattr(p, k) for p in parts]) for k in ("features", "things", "styles"))))
    report = {
        "held-out scenes": accuracy(probe, crops_of(pictures(held.scenes, icons) / 255, held.scenes, nets)),
        "held-out scenes, decoded": accuracy(probe, crops_of(decoded(vae, held.latents), held.scenes, nets)),
    }
    probe.save(target, report)
    log.info("scene probe: %s", json.dumps(report))
