"""The training pictures mirrored, shrunk and moved: what the group's aggregator learns from.

The experts know their training pictures by heart. On those an aggregator learns to trust the expert of the topic alone,
and on things that no expert was told about, the one that generalises best; neither helps on a known thing in a new
style, where the held-out loss then rises above that of the plain mean. A known thing that looks a little different
comes closer.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from PIL import Image, ImageOps

from recipes.zoo.data import SIZE
from recipes.zoo.pictures import read_rows
from recipes.zoo.settings import WORK

MIRRORED, SMALLEST, LARGEST = 0.7, 50, 60


def view(picture: Image.Image, chance: random.Random) -> Image.Image:
    """One picture, perhaps mirrored, 50 to 60 pixels wide, somewhere on a white page of 64."""
    if chance.random() < MIRRORED:
        picture = ImageOps.mirror(picture)
    side = chance.randint(SMALLEST, LARGEST)
    page = Image.new("RGB", (SIZE, SIZE), "white")
    place = (chance.randint(0, SIZE - side), chance.randint(0, SIZE - side))
    page.paste(picture.resize((side, side), Image.Resampling.LANCZOS), place)
    return page


def make(work: Path = WORK, seed: int = 0) -> None:
    """Write `work/views`, an imagefolder with one view of every training picture."""
    folder, chance = work / "views", random.Random(seed)
    if (folder / "metadata.jsonl").exists():
        return
    rows = [row for row in read_rows(work) if row["split"] == "train"]
    for row in rows:
        target = folder / row["file_name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        view(Image.open(work / "data" / row["file_name"]).convert("RGB"), chance).save(target)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
