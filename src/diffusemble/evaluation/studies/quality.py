"""Training-set quality: the aggregator learns from clean pictures, and from damaged ones."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from diffusemble.evaluation.studies.compare import comparison, gap_figure, loss_gaps, tally
from diffusemble.evaluation.studies.config import DAMAGES, QualityConfig
from diffusemble.evaluation.studies.findings import Findings
from diffusemble.evaluation.studies.lab import Lab
from diffusemble.evaluation.studies.trained import Variant, as_systems, chosen, settings_of, train_variants
from diffusemble.evaluation.systems import build_systems, select
from diffusemble.training.chance import seed_of
from diffusemble.training.data import Picture, open_sources

CLEAN = "clean"
TITLES = {
    "clean": "clean pictures",
    "blur": "blurred pictures",
    "jpeg": "pictures at JPEG quality 8",
    "noise": "noisy pictures",
    "captions": "captions of other pictures",
}
BLUR, QUALITY, NOISE = 0.03, 8, 0.2  # share of the shorter side; JPEG's scale; standard deviation, of 1


def run(config: QualityConfig, lab: Lab) -> Findings:
    """Each damage against clean pictures, and against the untrained average."""
    known: dict[str, Variant] = {name: Variant(TITLES[name]) for name in DAMAGES}
    variants = {
        name: Variant(one.title, _data(name, config, lab)) for name, one in chosen(known, config, CLEAN).items()
    }
    ensembles = train_variants(variants, lab, needed=CLEAN)
    systems = build_systems(lab.ensemble, guidance=config.guidance)
    average = select(systems, ("block-average",))
    measured = lab.measure((*as_systems(ensembles, variants), *average), span=(0.8, 1))
    gaps = loss_gaps(measured, measured[CLEAN], lab)
    damaged = {name: gaps[name] for name in ensembles if name != CLEAN}
    untrained = loss_gaps(measured, measured["block-average"], lab)
    return Findings(
        f"Against training on clean pictures, damaged ones give a held-out loss that is, over {len(damaged)} kinds of "
        f"damage: {tally(damaged, lower_is_better=True)}. Against the untrained block average, all trainings: "
        f"{tally(untrained, lower_is_better=True)}.",
        (comparison(measured, measured[CLEAN], lab),),
        {"quality.png": gap_figure(measured, gaps, "held-out loss ×1000 above that of clean training pictures")},
        {"held-out pictures": len(lab.rows), "captions drawn": len(lab.jobs)},
    )


def damaged(image: Image.Image, kind: str, seed: int) -> Image.Image:
    """The picture blurred, compressed or with noise; as it is for the other kinds."""
    image = image.convert("RGB")
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(BLUR * min(image.size)))
    if kind == "jpeg":
        packed = io.BytesIO()
        image.save(packed, "JPEG", quality=QUALITY)
        return Image.open(packed).convert("RGB")
    if kind == "noise":
        pixels = np.asarray(image) / 255
        noisy = pixels + NOISE * np.random.default_rng(seed).standard_normal(pixels.shape)
        return Image.fromarray((255 * noisy.clip(0, 1)).round().astype(np.uint8))
    return image


def write_damaged(pictures: list[Picture], kind: str, folder: Path, seed: int) -> Path:
    """An imagefolder of the damaged pictures; captions are exchanged at random if they are the damage.

    A folder with its ``metadata.jsonl`` is whole, and is left as it is.
    """
    if (folder / "metadata.jsonl").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    captions = [picture.caption for picture in pictures]
    if kind == "captions":
        random.Random(seed_of(seed, "captions")).shuffle(captions)
    rows = []
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        file = f"{number:06d}.png"
        with Image.open(io.BytesIO(picture.read())) as opened:
            damaged(_on_white(opened), kind, seed_of(seed, "damage", number)).save(folder / file)
        rows.append(json.dumps({"file_name": file, "text": caption}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(rows), encoding="utf-8")
    return folder


def _data(kind: str, config: QualityConfig, lab: Lab) -> dict[str, object]:
    """Changes to the training's configuration that make it read damaged pictures."""
    if kind == CLEAN or kind in config.folders:
        return {}
    source = open_sources(settings_of(Variant(""), config, lab.ensemble.experts).data)
    folder = Path(config.out) / "damaged" / f"{kind}-{seed_of(source.stamp, config.seed):016x}"
    lab.tell(0.0, f"damaging pictures: {kind}")

    return {"data": [{"path": str(write_damaged(list(source.pictures()), kind, folder, config.seed))}]}


def _on_white(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands():
        return image
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image.convert("RGBA"))
    return page
