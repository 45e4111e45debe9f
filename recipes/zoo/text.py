"""The zoo's tokenizer and CLIP text encoder, trained here against a small picture encoder that is thrown away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from recipes.zoo.loop import epoch_indices, train
from recipes.zoo.pictures import read_pictures, read_rows, to_signed
from recipes.zoo.settings import DEVICE, WORK, plan_of, settings
from recipes.zoo.vae import augment

START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(lines: list[str], vocabulary: int, length: int) -> CLIPTokenizer:
    """A byte-level BPE tokenizer in CLIP's layout: bytes, bytes that end a word, merges, start, end (the padding)."""
    plain = CLIPTokenizer()
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = plain.backend_tokenizer.normalizer
    learner.pre_tokenizer = plain.backend_tokenizer.pre_tokenizer
    letters = sorted(ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(lines, trainer)
    learned = json.loads(learner.to_str())["model"]["merges"]
    merges = [tuple(pair) for pair in learned[: vocabulary - 2 * len(letters) - 2]]
    tokens = [*letters, *(c + "</w>" for c in letters), *("".join(pair) for pair in merges), START, END]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def build_encoder(tokenizer: CLIPTokenizer, model: dict[str, Any]) -> CLIPTextModelWithProjection:
    """A CLIP text encoder with a projection, for the tokenizer's words and length."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=model["hidden_size"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **model,
    )
    return CLIPTextModelWithProjection(config)


class TwoTowers(nn.Module):
    """The text encoder and a small convolutional picture encoder, with a learned temperature."""

    def __init__(self, text: CLIPTextModelWithProjection) -> None:
        super().__init__()
        width, before = text.config.projection_dim, 3
        layers: list[nn.Module] = [nn.AvgPool2d(2)]
        for after, stride in ((48, 2), (96, 2), (128, 1), (192, 2)):
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.SiLU()]
            before = after
        self.text = text
        self.picture = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(width))
        self.scale = nn.Parameter(torch.tensor(2.3))
        self.picture(torch.zeros(1, 3, 64, 64))

    def embed(self, tokens: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors `[b d]` of captions and pictures."""
        return F.normalize(self.text(tokens).text_embeds, dim=1), F.normalize(self.picture(pictures), dim=1)

    def forward(self, tokens: Tensor, pictures: Tensor) -> Tensor:
        """The symmetric contrastive loss of CLIP (Radford et al. 2021, figure 3)."""
        texts, seen = self.embed(tokens, pictures)
        scores = self.scale.exp().clamp(max=50) * texts @ seen.T
        target = torch.arange(len(scores), device=scores.device)
        return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


def caption(row: dict[str, str], keywords: list[str], generator: torch.Generator) -> str:
    """A caption, or a paraphrase: without the style, with a keyword, or of keywords alone."""
    kind = float(torch.rand((), generator=generator))
    if kind < 0.55 or not keywords:
        return row["text"]
    word = keywords[int(torch.randint(len(keywords), (), generator=generator))]
    if kind < 0.7:
        return row["concept"]
    return f"{word} {row['concept']}, {row['style']} style" if kind < 0.85 else f"{word}, {row['style']} style"


def tokens_of(tokenizer: CLIPTokenizer, captions: list[str], padding: str = "longest") -> Tensor:
    """Token numbers `[b s]`, padded to the longest caption, or to the full length as pipelines do (`max_length`)."""
    return tokenizer(captions, padding=padding, truncation=True, return_tensors="pt").input_ids  # type: ignore[no-any-return]


@torch.no_grad()
def retrieval(towers: TwoTowers, tokenizer: CLIPTokenizer, rows: list[dict[str, str]], pictures: Tensor) -> float:
    """Share of pictures whose own caption is the nearest of all of `rows`."""
    texts, seen = towers.embed(tokens_of(tokenizer, [row["text"] for row in rows]), to_signed(pictures))
    return float(((seen @ texts.T).argmax(1) == torch.arange(len(rows))).float().mean())


def make(work: Path = WORK) -> None:
    """Train the tokenizer and the text encoder; write `work/tokenizer`, `work/text_encoder` and `work/text.json`."""
    if (work / "text.json").exists():
        return
    options, plan = settings("text"), plan_of("text")
    rows = read_rows(work)
    keywords: dict[str, list[str]] = json.loads((work / "keywords.json").read_text(encoding="utf-8"))
    lines = [row["text"] for row in rows] + [word for words in keywords.values() for word in words]
    tokenizer = build_tokenizer(lines, options["vocabulary"], options["length"])
    torch.manual_seed(plan.seed)
    towers = TwoTowers(build_encoder(tokenizer, options["model"])).to(DEVICE)
    known, held = ([row for row in rows if (row["split"] == "train") == seen] for seen in (True, False))
    pictures = read_pictures([work / "data" / row["file_name"] for row in known])

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        picked = epoch_indices(step, plan.batch, len(known), plan.seed)
        captions = [caption(known[i], keywords[known[i]["concept"]], generator) for i in picked.tolist()]
        seen = to_signed(pictures[picked])
        shift = torch.randint(-4, 5, (2,), generator=generator).tolist()
        seen = augment(seen, generator, 0.0).roll(shift, (2, 3))
        loss: Tensor = towers(tokens_of(tokenizer, captions).to(DEVICE), seen.to(DEVICE))
        return loss

    average = train(towers, loss_at, plan, work / "training/text").cpu()
    pairs = [row for row in held if row["split"] == "pair"]
    scores = {
        "train": retrieval(average, tokenizer, known, pictures),
        "pair": retrieval(average, tokenizer, pairs, read_pictures([work / "data" / r["file_name"] for r in pairs])),
        "captions": {"train": len(known), "pair": len(pairs)},
    }
    tokenizer.save_pretrained(work / "tokenizer")
    average.text.save_pretrained(work / "training/text/encoder")
    CLIPTextModel.from_pretrained(work / "training/text/encoder").save_pretrained(work / "text_encoder")
    (work / "text.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")
