"""Three experts: the base fine-tuned, every weight of its U-Net, on one topic each."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from diffusemble.zoo import groups
from recipes.zoo.loop import train
from recipes.zoo.pictures import read_rows
from recipes.zoo.settings import DEVICE, WORK, plan_of
from recipes.zoo.unet import Corpus, Parts, noise_loss


def make(work: Path = WORK) -> None:
    """Train the experts and write `work/experts/<topic>`."""
    topics = [topic for topic in groups()["topics"] if not (work / "experts" / topic / "config.json").exists()]
    if not topics:
        return
    plan, parts = plan_of("experts"), Parts.load(work)
    rows = [row for row in read_rows(work) if row["split"] == "train"]
    for topic in topics:
        corpus = Corpus.load(parts, [row for row in rows if row["topic"] == topic], work, variants=4)
        unet = UNet2DConditionModel.from_pretrained(work / "unet").to(DEVICE, memory_format=torch.channels_last).train()
        average = train(unet, noise_loss(corpus, unet, plan), plan, work / "training" / topic)
        average.save_pretrained(work / "experts" / topic)
