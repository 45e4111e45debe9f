"""The experts: the base fine-tuned on one ground each, and on more of it than the base saw.

An expert of a topic has the base's text encoder; an expert of styles has one of its own, trained with its U-Net.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from diffusemble.zoo import on_ground
from diffusemble.zoo.experts import STYLES, TOPICS
from recipes.zoo import unseen
from recipes.zoo.loop import State, train
from recipes.zoo.pictures import read_rows
from recipes.zoo.settings import DEVICE, WORK, plan_of, settings
from recipes.zoo.text import tokens_of
from recipes.zoo.unet import Corpus, Parts, held_out_errors, noise_loss, spread


class Denoiser(nn.Module):
    """A U-Net and, if it is trained too, the text encoder in front of it."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel | None) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, noisy: Tensor, times: Tensor, text: Tensor) -> Any:
        """The U-Net's output for embeddings `[b s d]`, or for token numbers `[b s]` if it has a text encoder."""
        if self.text_encoder is not None:
            text = self.text_encoder(text).last_hidden_state
        return self.unet(noisy, times, text)


def load_expert(folder: Path) -> Denoiser:
    """What `fine_tune` wrote."""
    encoder = folder / "text_encoder"
    own = CLIPTextModel.from_pretrained(encoder).float().requires_grad_(False).eval() if encoder.is_dir() else None
    return Denoiser(UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32), own)


def fine_tune(name: str, work: Path, *, with_text: bool) -> None:
    """Train one expert and write `work/experts/<name>`: a diffusers folder of the parts that are its own."""
    target = work / "experts" / name
    if (target / "unet/config.json").exists():
        return
    plan, parts, rows = plan_of("styles" if with_text else "topics"), Parts.load(work), read_rows(work)
    own = [row for row in rows if row["split"] == "train" and on_ground(name, row)]
    more = [row for row in unseen.read(work) if row["split"] == "experts" and on_ground(name, row)]
    options = settings("styles" if with_text else "topics")
    further = spread(more, min(len(more), options.get("further", {}).get(name, len(more))))
    corpus = Corpus.load(parts, own + further, work, variants=options["variants"])
    if options["balanced"]:
        corpus = corpus.balanced(len(own))
    unet = UNet2DConditionModel.from_pretrained(work / "unet").to(DEVICE, memory_format=torch.channels_last)
    encoder = None
    if with_text:
        corpus = corpus.with_texts(lambda captions: tokens_of(parts.tokenizer, captions, "max_length"))
        encoder = CLIPTextModel.from_pretrained(work / "text_encoder").to(DEVICE)
    model = Denoiser(unet, encoder).train()
    folder = work / "training" / name
    average = train(model, noise_loss(corpus, model, plan), plan, folder, watcher(name, parts, rows, work))
    if average.text_encoder is not None:
        average.text_encoder.save_pretrained(target / "text_encoder")
    average.unet.save_pretrained(target / "unet")


def watcher(name: str, parts: Parts, rows: list[dict[str, str]], work: Path) -> Callable[[State[Denoiser]], None]:
    """Logs the held-out error on the expert's own ground and elsewhere at each checkpoint."""
    pairs = [row for row in rows if row["split"] == "pair"]
    grounds = {True: "own", False: "elsewhere"}
    held = {
        word: Corpus.load(parts, [row for row in pairs if on_ground(name, row) is here], work)
        for here, word in grounds.items()
    }

    def watch(state: State[Denoiser]) -> None:
        mine = Parts(parts.vae, state.average.text_encoder or parts.encoder, parts.tokenizer)
        found = {
            word: float(
                held_out_errors(state.average.unet, corpus.with_texts(mine.embed), times=(150, 450, 750)).mean()
            )
            for word, corpus in held.items()
        }
        with (work / "training" / name / "held-out.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.step, **found}) + "\n")

    return watch


def make(work: Path = WORK, names: tuple[str, ...] = ()) -> None:
    """Train the experts, or those of `names`."""
    for name in names or (*TOPICS, *STYLES):
        fine_tune(name, work, with_text=name in STYLES)
