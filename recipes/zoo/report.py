"""The zoo's model card: sheets and numbers of the shipped models in `docs/zoo/`, and `docs/zoo.md` from `card.md`."""

from __future__ import annotations

import json
from pathlib import Path
from string import Template
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffusemble import zoo
from recipes.zoo.pictures import read_pictures, read_rows, to_signed
from recipes.zoo.settings import WORK, settings
from recipes.zoo.unet import Corpus, Parts, draw, held_out_errors, spread
from recipes.zoo.vae import reconstruct, sheet_pictures

DOCS = Path(__file__).parents[2] / "docs"
GUIDANCE, STEPS, NOISES = 3.0, 50, 4


def contact_sheet(rows: list[tuple[str, Tensor]], captions: list[str], path: Path) -> None:
    """Rows of float `[n 3 h w]` pictures in [-1, 1], a name before each row, captions over the columns."""
    side, left, top = rows[0][1].shape[-1], 60, 34
    page = Image.new("RGB", (left + (side + 4) * len(captions), top + (side + 4) * len(rows)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(9)
    for column, caption in enumerate(captions):
        pen.multiline_text((left + column * (side + 4), 2), wrap(caption), "black", font, spacing=0)
    for line, (name, pictures) in enumerate(rows):
        pen.text((2, top + line * (side + 4) + side // 2 - 6), name, "black", font)
        for column, picture in enumerate(pictures):
            pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            page.paste(Image.fromarray(pixels), (left + column * (side + 4), top + line * (side + 4)))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, optimize=True)


def wrap(caption: str, width: int = 14) -> str:
    """A caption in short lines."""
    lines = [""]
    for word in caption.replace(" style", "").split():
        lines = [*lines, word] if len(lines[-1]) + len(word) >= width else [*lines[:-1], f"{lines[-1]} {word}".strip()]
    return "\n".join(lines)


def paired(errors: dict[str, Tensor], best: str) -> dict[str, list[float]]:
    """Mean error of each model, and how much worse it is than `best` with a 95 % interval over the pictures.

    Args:
        errors: model -> `[n t]` squared noise errors on the same pictures, times and noises.
        best: the model the others are compared with.

    Returns:
        model -> [mean, mean difference, half width of its interval].
    """
    report = {}
    for model, found in errors.items():
        difference = (found - errors[best]).mean(dim=1)
        half = 1.96 * difference.std() / len(difference) ** 0.5
        report[model] = [round(float(x), 5) for x in (found.mean(), difference.mean(), half)]
    return report


def matrix(pipes: dict[str, StableDiffusionPipeline], work: Path, split: str) -> dict[str, Any]:
    """Held-out noise error of every shipped model on every topic, compared in pairs with the topic's own expert."""
    parts, rows = Parts.load(work), [row for row in read_rows(work) if row["split"] == split]
    report = {}
    for topic in zoo.groups()["topics"]:
        corpus = Corpus.load(parts, [row for row in rows if row["topic"] == topic], work)
        errors = {name: held_out_errors(pipe.unet, corpus, NOISES) for name, pipe in pipes.items()}
        report[topic] = paired(errors, topic)
    return report


def draw_sheets(pipes: dict[str, StableDiffusionPipeline], work: Path, docs: Path) -> None:
    """Held-out pairs by the expert of their topic, the experts beside each other, and reconstructions."""
    rows = read_rows(work)
    pairs = spread([row for row in rows if row["split"] == "pair"], 24)
    captions = [row["text"] for row in pairs]
    real = to_signed(read_pictures([work / "data" / row["file_name"] for row in pairs]))
    drawn = {name: draw(pipe, captions, GUIDANCE, STEPS) for name, pipe in pipes.items()}
    own = torch.stack([drawn[row["topic"]][i] for i, row in enumerate(pairs)])
    for part in (0, 1):
        here = slice(12 * part, 12 * part + 12)
        lines = [("the art", real[here]), ("own expert", own[here]), ("base", drawn["base"][here])]
        contact_sheet(lines, captions[here], docs / f"zoo/held-out-{part + 1}.png")
    some = slice(0, 24, 2)
    contact_sheet([(n, d[some]) for n, d in drawn.items()], captions[some], docs / "zoo/experts.png")
    sheet, vae = sheet_pictures(work), AutoencoderKL.from_pretrained(zoo.folder("base") / "vae")
    through = reconstruct(vae, sheet)
    lines = [line for k in (0, 12) for line in (("the art", sheet[k : k + 12]), ("8x8x8", through[k : k + 12]))]
    contact_sheet(lines, [""] * 12, docs / "zoo/autoencoder.png")


def training_cost(work: Path) -> dict[str, dict[str, float]]:
    """Steps and minutes of every training, from its log."""
    cost = {}
    for name in ("vae", "text", "unet", *zoo.groups()["topics"]):
        path = work / "training" / name / "log.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        steps = [row["step"] for row in rows]
        spent = sum(
            row["seconds_per_step"] * (step - before)
            for row, step, before in zip(rows, steps, [0, *steps], strict=False)
            if step > before
        )
        cost[name] = {"steps": steps[-1], "minutes": round(spent / 60, 1)}
    return cost


def table(report: dict[str, Any]) -> str:
    """The expert × topic matrix as a Markdown table."""
    topics = list(report)
    lines = ["| | " + " | ".join(f"on {topic}" for topic in topics) + " |", "|---" * (len(topics) + 1) + "|"]
    for model in zoo.names():
        cells = []
        for topic in topics:
            mean, difference, half = report[topic][model]
            note = "" if model == topic else f" ({difference:+.4f} ± {half:.4f})"
            cells.append(f"**{mean:.4f}**" if model == topic else f"{mean:.4f}{note}")
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def make(work: Path = WORK, docs: Path = DOCS) -> None:
    """Write `docs/zoo/*.png`, `docs/zoo/numbers.json` and `docs/zoo.md` for the shipped weights."""
    pipes = {name: StableDiffusionPipeline.from_pretrained(zoo.folder(name)) for name in zoo.names()}
    draw_sheets(pipes, work, docs)
    rows = read_rows(work)
    packed = json.loads((work / "pack.json").read_text(encoding="utf-8"))
    unet = pipes["base"].unet
    numbers: dict[str, Any] = {
        "pictures": {split: sum(row["split"] == split for row in rows) for split in ("train", "pair", "concept")},
        "parameters": {
            part: sum(p.numel() for p in module.parameters())
            for part, module in (("unet", unet), ("vae", pipes["base"].vae), ("text", pipes["base"].text_encoder))
        },
        "cost": training_cost(work),
        "text": json.loads((work / "text.json").read_text(encoding="utf-8")),
        "pair": matrix(pipes, work, "pair"),
        "concept": matrix(pipes, work, "concept"),
        "packed": packed,
    }
    (docs / "zoo/numbers.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    card = Template(Path(__file__).with_name("card.md").read_text(encoding="utf-8"))
    (docs / "zoo.md").write_text(card.substitute(card_values(numbers)), encoding="utf-8")


def packing_change(packed: dict[str, Any]) -> float:
    """The largest change of a held-out error by packing."""
    models = [packed[name] for name in zoo.names()]
    return max(abs(model["after"][topic] - model["before"][topic]) for model in models for topic in model["after"])


def card_values(numbers: dict[str, Any]) -> dict[str, str]:
    """What `card.md` leaves open."""
    cost, packed, sizes = numbers["cost"], numbers["packed"], numbers["parameters"]
    names = {"vae": "autoencoder", "text": "text encoder", "unet": "base U-Net"}
    rows = [f"| {names.get(k, k + ' expert')} | {v['steps']} | {v['minutes']} |" for k, v in cost.items()]
    return {
        **{f"{split}_count": str(count) for split, count in numbers["pictures"].items()},
        **{f"{part}_millions": f"{count / 1e6:.2f}" for part, count in sizes.items()},
        "cost": "\n".join(rows),
        "minutes": f"{sum(v['minutes'] for v in cost.values()):.0f}",
        "passes": f"{cost['unet']['steps'] * settings('unet')['plan']['batch'] / numbers['pictures']['train']:.0f}",
        "text_train": f"{100 * numbers['text']['train']:.0f}",
        "text_pair": f"{100 * numbers['text']['pair']:.0f}",
        "pair_table": table(numbers["pair"]),
        "concept_table": table(numbers["concept"]),
        "packing_change": f"{packing_change(packed):.5f}",
        "megabytes": f"{packed['bytes'] / 2**20:.1f}",
        "expert_megabytes": f"{packed['people']['bytes'] / 2**20:.1f}",
    }
