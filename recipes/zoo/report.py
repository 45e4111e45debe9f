"""The zoo's model card: sheets and numbers of the shipped models in `docs/zoo/`, and `docs/zoo.md` from `card.md`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffusemble import zoo
from diffusemble.zoo.experts import WEIGHTS
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
    page.save(path, quality=90, method=6)


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


def matrix(pipes: dict[str, StableDiffusionPipeline], work: Path, split: str, group: str) -> dict[str, Any]:
    """Held-out noise error of the base and a group on every expert's ground, in pairs with the ground's own expert."""
    parts, rows = Parts.load(work), [row for row in read_rows(work) if row["split"] == split]
    report = {}
    for ground in zoo.groups()[group]:
        corpus = Corpus.load(parts, [row for row in rows if zoo.on_ground(ground, row)], work)
        errors = {}
        for name in ("base", *zoo.groups()[group]):
            own = corpus.with_texts(replace(parts, encoder=pipes[name].text_encoder).embed)
            errors[name] = held_out_errors(pipes[name].unet, own, NOISES)
        report[ground] = paired(errors, ground)
    return report


def draw_sheets(pipes: dict[str, StableDiffusionPipeline], work: Path, docs: Path) -> None:
    """Held-out pairs by the experts on whose ground they are, all experts beside each other, and reconstructions."""
    rows = read_rows(work)
    pairs = spread([row for row in rows if row["split"] == "pair"], 24)
    captions = [row["text"] for row in pairs]
    real = to_signed(read_pictures([work / "data" / row["file_name"] for row in pairs]))
    drawn = {name: draw(pipe, captions, GUIDANCE, STEPS) for name, pipe in pipes.items()}
    own = {
        group: torch.stack([drawn[at_home(group, row)][i] for i, row in enumerate(pairs)])
        for group in ("topics", "styles")
    }
    for part in (0, 1):
        here = slice(12 * part, 12 * part + 12)
        lines = [("the art", real[here]), *((f"of {group}", found[here]) for group, found in own.items())]
        contact_sheet([*lines, ("base", drawn["base"][here])], captions[here], docs / f"zoo/held-out-{part + 1}.webp")
    some = slice(0, 24, 2)
    contact_sheet([(n, d[some]) for n, d in drawn.items()], captions[some], docs / "zoo/experts.webp")
    sheet, vae = sheet_pictures(work), AutoencoderKL.from_pretrained(zoo.folder("base") / "vae")
    through = reconstruct(vae, sheet)
    lines = [line for k in (0, 12) for line in (("the art", sheet[k : k + 12]), ("8x8x8", through[k : k + 12]))]
    contact_sheet(lines, [""] * 12, docs / "zoo/autoencoder.webp")


def at_home(group: str, row: dict[str, str]) -> str:
    """The expert of a group on whose ground a picture is."""
    return next(name for name in zoo.groups()[group] if zoo.on_ground(name, row))


def training_cost(work: Path) -> dict[str, dict[str, float]]:
    """Steps and minutes of every training, from its log."""
    cost = {}
    for name in ("vae", "text", "unet", *zoo.names()[1:]):
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
    """The expert × ground matrix as a Markdown table."""
    grounds = list(report)
    lines = ["| | " + " | ".join(f"on {ground}" for ground in grounds) + " |", "|---" * (len(grounds) + 1) + "|"]
    for model in report[grounds[0]]:
        cells = []
        for ground in grounds:
            mean, difference, half = report[ground][model]
            note = "" if model == ground else f" ({difference:+.4f} ± {half:.4f})"
            cells.append(f"**{mean:.4f}**" if model == ground else f"{mean:.4f}{note}")
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def make(work: Path = WORK, docs: Path = DOCS) -> None:
    """Write `docs/zoo/*.webp`, `docs/zoo/numbers.json` and `docs/zoo.md` for the shipped weights."""
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
        **{
            f"{split}_{group}": matrix(pipes, work, split, group)
            for group in ("topics", "styles")
            for split in ("pair", "concept")
        },
        "packed": packed,
    }
    (docs / "zoo/numbers.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    write_card(docs)


def write_card(docs: Path = DOCS) -> None:
    """Write `docs/zoo.md` from the numbers and the weights that are there."""
    numbers = json.loads((docs / "zoo/numbers.json").read_text(encoding="utf-8"))
    card = Template(Path(__file__).with_name("card.md").read_text(encoding="utf-8"))
    (docs / "zoo.md").write_text(card.substitute(card_values(numbers)), encoding="utf-8")


def packing_change(packed: dict[str, Any]) -> float:
    """The largest change of a held-out error by packing."""
    return max(abs(packed[name]["after"] - packed[name]["before"]) for name in zoo.names()[1:])


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
        **{key: table(numbers[key]) for key in numbers if key.endswith(("_topics", "_styles"))},
        "packing_change": f"{packing_change(packed):.5f}",
        "megabytes": f"{sum(p.stat().st_size for p in WEIGHTS.rglob('*') if p.is_file()) / 2**20:.1f}",
        "expert_megabytes": f"{packed['people']['bytes'] / 2**20:.1f}",
        "styles_megabytes": f"{packed['shaded']['bytes'] / 2**20:.1f}",
    }
