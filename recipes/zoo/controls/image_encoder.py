"""A tiny CLIP picture encoder for the image prompt: 64 px pictures to embeddings in which styles lie apart.

It shares nothing with the nets that measure style.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from recipes.zoo.data import STYLES
from recipes.zoo.loop import epoch_indices, train
from recipes.zoo.pictures import read_pictures, read_rows
from recipes.zoo.settings import DEVICE, WORK, plan_of, settings

NAME, SIDE = "image_encoder", 64
MOVED = 4  # px
log = logging.getLogger("recipes.zoo")


class Encoder(nn.Module):
    """The encoder that is kept, and a layer that names styles, which is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(image_size=SIDE, **settings(NAME)["model"]))
        self.head = nn.Linear(self.encoder.config.projection_dim, len(STYLES))

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits `[b 6]` of pictures `[b 3 64 64]` in [-1, 1]."""
        found: Tensor = self.head(F.layer_norm(self.encoder(pictures).image_embeds, (self.head.in_features,)))
        return found


def rows_of(work: Path, *splits: str) -> list[dict[str, str]]:
    """Rows of the data's splits."""
    return [row for row in read_rows(work) if row["split"] in splits]


def signed(work: Path, rows: list[dict[str, str]]) -> Tensor:
    """Pictures `[n 3 64 64]` in [-1, 1], as the encoder reads them."""
    return read_pictures([work / "data" / row["file_name"] for row in rows]).float() / 127.5 - 1


def changed(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures mirrored and moved, half of them with their colour channels exchanged: a style is no colour."""
    pictures = pictures.flip(3) if torch.rand((), generator=generator) < 0.5 else pictures
    move = torch.randint(-MOVED, MOVED + 1, (2,), generator=generator).tolist()
    swap = torch.rand(len(pictures), 1, 1, 1, generator=generator) < 0.5
    pictures = torch.where(swap, pictures[:, torch.randperm(3, generator=generator)], pictures)
    return pictures.roll(move, (2, 3))


def references(work: Path) -> dict[str, list[dict[str, str]]]:
    """Training pictures by style, from which a scene's reference is drawn."""
    rows = rows_of(work, "train")
    return {style: [row for row in rows if row["style"] == style] for style in STYLES}


@torch.no_grad()
def embeddings(work: Path, rows: list[dict[str, str]]) -> Tensor:
    """Embeddings `[n d]` of pictures by the trained encoder."""
    encoder = CLIPVisionModelWithProjection.from_pretrained(work / "controls/image_encoder").eval()
    return torch.cat([encoder(part).image_embeds for part in signed(work, rows).split(128)])


def make(work: Path = WORK) -> None:
    """Train the encoder and write `work/controls/image_encoder`, with its share of right styles in `report.json`."""
    target = work / "controls/image_encoder"
    if (target / "config.json").exists():
        return
    plan, rows = plan_of(NAME), rows_of(work, "train")
    pictures, styles = signed(work, rows), torch.tensor([list(STYLES).index(row["style"]) for row in rows])
    torch.manual_seed(plan.seed)
    model = Encoder().to(DEVICE)

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        picked = epoch_indices(step, plan.batch, len(rows), plan.seed)
        logits = model(changed(pictures[picked], generator).to(DEVICE))
        return F.cross_entropy(logits, styles[picked].to(DEVICE), label_smoothing=0.1)

    average = train(model, loss_at, plan, work / "training" / NAME).cpu().eval()
    report = {split: right(average, work, split) for split in ("train", "pair", "concept")}
    average.encoder.save_pretrained(target)
    processor().save_pretrained(target)
    (target / "report.json").write_text(json.dumps(report), encoding="utf-8")
    log.info("image encoder: %s", json.dumps(report))


@torch.no_grad()
def right(model: Encoder, work: Path, split: str) -> float:
    """Share of a split's pictures whose style the thrown-away layer names."""
    rows = rows_of(work, split)
    found = torch.cat([model(part).argmax(dim=1) for part in signed(work, rows).split(128)])
    return round(float((found == torch.tensor([list(STYLES).index(row["style"]) for row in rows])).float().mean()), 4)


def processor() -> CLIPImageProcessor:
    """How pictures are made ready for the encoder: 64 px, -1 to 1."""
    return CLIPImageProcessor(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
