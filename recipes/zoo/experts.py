"""Three experts: the base's whole U-Net fine-tuned on one topic each, and on more of it than the base saw."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from diffusemble.zoo import groups
from recipes.zoo import unseen
from recipes.zoo.loop import train
from recipes.zoo.pictures import read_rows
from recipes.zoo.settings import DEVICE, WORK, plan_of
from recipes.zoo.unet import Corpus, Parts, noise_loss


def fine_tune(topic: str, work: Path) -> None:
    """Train one expert and write `work/experts/<topic>`."""
    if (work / "experts" / topic / "config.json").exists():
        return
    plan = plan_of("experts")
    own = [row for row in read_rows(work) if row["split"] == "train" and row["topic"] == topic]
    more = [row for row in unseen.read(work) if row["split"] == "experts" and row["topic"] == topic]
    corpus = Corpus.load(Parts.load(work), own + more, work, variants=2).balanced(len(own))
    unet = UNet2DConditionModel.from_pretrained(work / "unet").to(DEVICE, memory_format=torch.channels_last).train()
    average = train(unet, noise_loss(corpus, unet, plan), plan, work / "training" / topic)
    average.save_pretrained(work / "experts" / topic)


def make(work: Path = WORK) -> None:
    """Train the experts."""
    for topic in groups()["topics"]:
        fine_tune(topic, work)
