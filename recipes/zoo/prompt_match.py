"""Trains the scorer "prompt match (zoo)": two linear heads between picture features and sentence embeddings.

It shares no weights with the experts. It learns from all icons, far more concepts than the experts draw, and sees
neither the experts' held-out (concept, style) pictures nor any picture of the concepts that are kept for its own test.
`python -m recipes.zoo prompt_match` takes about ten minutes on one core, nearly all of it for the features, which are
computed once.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusemble.evaluation.features import NETS, FeatureNet
from diffusemble.evaluation.prompt_match import HEADS, PromptMatch, SentenceEncoder
from recipes.zoo.data import KEYWORDS, NAMES, STYLES, clean_code, fetch, fraction, read_concepts, read_package, split_of
from recipes.zoo.pictures import read_pictures
from recipes.zoo.settings import WORK
from recipes.zoo.unet import shift

UNSEEN = 0.24  # of the concepts that the experts do not draw: about 300, kept for the test
VARIANTS = 2  # of every picture: as it is, and moved and softened
STEPS, BATCH, RATE, DROPOUT, SEED = 600, 512, 2e-3, 0.3, 0
log = logging.getLogger("recipes.zoo")


@dataclass(frozen=True)
class Names:
    """What concepts are called: `texts[i]` is the name by itself, then one text for each style, then others."""

    codes: list[str]
    texts: list[list[str]]


@dataclass(frozen=True)
class Material:
    """Everything in memory: c concepts, 6 styles, v variants.

    `pictures` `[c 6 v 2560]`, `texts` per concept `[m 384]`, `trained` `[c 6]` says which pictures may be learned from,
    `unseen` `[c]` which concepts are kept for the test, and `drawn` `[c]` which the experts draw.
    """

    pictures: Tensor
    texts: list[Tensor]
    trained: Tensor
    unseen: Tensor
    drawn: Tensor


def read_names(work: Path) -> Names:
    """Names and keywords of every icon; the experts' concepts by the experts' names."""
    listed = json.loads(read_package(fetch(NAMES, work / "packages"))["data-by-emoji.json"])
    words = json.loads(read_package(fetch(KEYWORDS, work / "packages"))["dist/emoji-en-US.json"])
    unicode = {code_of(e): row["name"].lower() for e, row in listed.items()}
    keywords = {code_of(e): [w.replace("_", " ").lower() for w in row] for e, row in words.items()}
    ours = {c.code: c.name for c in read_concepts()}
    codes = sorted(path.stem for path in (work / "icons/noto").glob("*.png"))
    texts = []
    for code in codes:
        name = ours.get(code, unicode[code])
        others = [", ".join([name, *keywords.get(code, [])[:3]]), unicode[code]]
        texts.append([name, *(f"{name}, {style} style" for style in STYLES), *others])
    return Names(codes, texts)


def code_of(emoji: str) -> str:
    return clean_code("-".join(f"{ord(c):x}" for c in emoji))


def soften(pictures: Tensor, seed: int) -> Tensor:
    """Pictures in [0, 1], each blurred by its own amount and with a little noise, as an autoencoder leaves them."""
    generator = torch.Generator().manual_seed(seed)
    sigma = 0.3 + 1.2 * torch.rand(len(pictures), 1, generator=generator)
    kernel = F.normalize(torch.exp(-(torch.arange(-3, 4)[None] ** 2) / (2 * sigma**2)), p=1, dim=1)
    x = F.pad(pictures.transpose(0, 1), (3,) * 4, mode="replicate")  # pictures as channels: one kernel for each
    x = F.conv2d(x, kernel[:, None, :, None], groups=len(pictures))
    x = F.conv2d(x, kernel[:, None, None, :], groups=len(pictures)).transpose(0, 1)
    return (x + 0.02 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def picture_features(work: Path, codes: list[str]) -> Tensor:
    """Features `[c 6 v 2560]` in float16, one cached file for each style."""
    nets, columns = [FeatureNet(name) for name in NETS], []
    for number, style in enumerate(STYLES):
        cache = work / f"prompt_match/{style.replace(' ', '-')}.pt"
        if not cache.exists():
            pictures = read_pictures([work / "icons" / style.replace(" ", "-") / f"{code}.png" for code in codes])
            found = []
            for variant in range(VARIANTS):
                images = shift(pictures, variant).float() / 255
                images = soften(images, number) if variant else images
                found.append(torch.cat([net(images) for net in nets], dim=1).half())
            cache.parent.mkdir(parents=True, exist_ok=True)
            torch.save(torch.stack(found, dim=1), cache)
            log.info("prompt match: features of %s", style)
        columns.append(torch.load(cache, weights_only=True))
    return torch.stack(columns, dim=1)


def load(work: Path) -> Material:
    """Features, texts and splits."""
    names = read_names(work)
    cache = work / "prompt_match/texts.pt"
    pictures = picture_features(work, names.codes).float()
    if not cache.exists():
        torch.save(SentenceEncoder()([text for texts in names.texts for text in texts]), cache)
    texts = torch.load(cache, weights_only=True).split([len(texts) for texts in names.texts])
    drawn = torch.tensor([code in {c.code for c in read_concepts()} for code in names.codes])
    kept = torch.tensor([fraction(f"prompt match:{code}") < UNSEEN for code in names.codes])
    held = [
        [ours and split_of(t[0], style) == "pair" for style in STYLES]
        for ours, t in zip(drawn, names.texts, strict=True)
    ]
    unseen = kept & ~drawn
    return Material(pictures, list(texts), ~torch.tensor(held) & ~unseen[:, None], unseen, drawn)


def fit(material: Material) -> PromptMatch:
    """Train the heads: a symmetric contrastive loss over batches of different concepts, one picture and text each."""
    torch.manual_seed(SEED)
    model, generator = PromptMatch(), torch.Generator().manual_seed(SEED)
    seen = material.pictures[material.trained]
    model.center.copy_(seen.mean(dim=(0, 1)))
    model.spread.copy_(seen.std(dim=(0, 1)) + 1e-3)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    concepts = material.trained.any(dim=1).nonzero().flatten()
    for _ in range(STEPS):
        picked = concepts[torch.randperm(len(concepts), generator=generator)[:BATCH]]
        styles = torch.multinomial(material.trained[picked].float(), 1, generator=generator).flatten()
        variants = torch.randint(VARIANTS, (len(picked),), generator=generator)
        images = material.pictures[picked, styles, variants]
        texts = torch.stack([_text(material.texts[c], int(s), generator) for c, s in zip(picked, styles, strict=True)])
        centered = F.dropout((images - model.center) / model.spread, DROPOUT)
        left = F.normalize(model.image(centered), dim=1)
        logits = model.scale.clamp(max=100) * left @ model.embed_texts(texts).T
        target = torch.arange(len(picked))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _text(texts: Tensor, style: int, generator: torch.Generator) -> Tensor:
    """The bare name, the name in the picture's style, or another text of the concept."""
    choices = [0, 1 + style, 1 + style, *range(1 + len(STYLES), len(texts))]
    return texts[choices[int(torch.randint(len(choices), (), generator=generator))]]


def accuracy(model: PromptMatch, material: Material, concepts: Tensor, pictures: Tensor) -> dict[str, Any]:
    """Top-1 and top-5 of retrieving a picture's name among `concepts`, texts in the picture's own style.

    Args:
        concepts: which concepts are candidates, bool `[c]`.
        pictures: which pictures are asked about, bool `[c 6]`.
    """
    rows, ranks = concepts.nonzero().flatten(), []
    for style in range(len(STYLES)):
        asked = (pictures[:, style] & concepts).nonzero().flatten()
        candidates = torch.stack([material.texts[c][1 + style] for c in rows])
        answers = torch.searchsorted(rows, asked)
        ranks.append(model.rank(material.pictures[asked, style, 0], candidates, answers))
    found = torch.cat(ranks)
    return {
        "candidates": len(rows),
        "pictures": len(found),
        "top_1": round((found == 0).float().mean().item(), 4),
        "top_5": round((found < 5).float().mean().item(), 4),
    }


def make(work: Path = WORK, target: Path = HEADS) -> None:
    """Write the shipped heads, with their accuracy on pictures they have not seen."""
    material = load(work)
    model, everything = fit(material), torch.ones_like(material.trained)
    held = ~material.trained & ~material.unseen[:, None]
    report = {
        "unseen concepts": accuracy(model, material, material.unseen, everything),
        "held-out pictures of seen concepts": accuracy(model, material, material.drawn, held),
        "seen pictures": accuracy(model, material, material.drawn, material.trained),
    }
    model.save(target, report)
    log.info("prompt match: %s", json.dumps(report))
