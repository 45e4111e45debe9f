"""Captioned pictures of everything that is not among the zoo's concepts.

The base knows its own training pictures by heart. Four fifths of these things widen the experts, each on its own
ground; of them one (thing, style) pair in ten, and all other things (`rest`), stay unseen by every model: they train
aggregators, but for a fifth of the pairs (`validation`), by which their trainings are judged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from recipes.zoo.data import HELD_OUT, NAMES, STYLES, code_point, fetch, fraction, read_concepts, read_package
from recipes.zoo.settings import WORK

EXPERTS_SHARE = 0.8  # of the emoji
VALIDATION_SHARE = 0.2  # of the pairs

TOPIC_OF_GROUP = {
    "Smileys & Emotion": "people",
    "People & Body": "people",
    "Animals & Nature": "animals",
    "Food & Drink": "animals",
    "Travel & Places": "things",
    "Activities": "things",
    "Objects": "things",
    "Symbols": "things",
}


def unseen_rows(listed: dict[str, dict[str, str]], chosen: set[str], drawn: set[str]) -> Iterator[dict[str, str]]:
    """Captioned pictures of emoji that are drawn but not chosen.

    Args:
        listed: emoji -> its Unicode name and group.
        chosen: code points of the zoo's concepts, seen or held out.
        drawn: code points that exist in every style.
    """
    for emoji, entry in listed.items():
        code, topic = code_point(emoji), TOPIC_OF_GROUP.get(entry["group"])
        if topic is None or code in chosen or code not in drawn:
            continue
        name = entry["name"].lower()
        for style in STYLES:
            yield {
                "file_name": f"{style.replace(' ', '-')}/{code}.png",
                "text": f"{name}, {style} style",
                "concept": name,
                "style": style,
                "topic": topic,
                "split": split_of(code, f"{name}:{style}"),
            }


def split_of(code: str, pair: str) -> str:
    """`experts`, or one of the splits that no expert sees: `rest`, `pair` and `validation`."""
    if fraction(f"unseen:{code}") >= EXPERTS_SHARE:
        return "rest"
    if fraction(f"pair:{pair}") >= HELD_OUT:
        return "experts"
    return "validation" if fraction(f"validation:{pair}") < VALIDATION_SHARE else "pair"


def read(work: Path) -> list[dict[str, str]]:
    """The rows that `make` wrote."""
    return [json.loads(line) for line in (work / "unseen.jsonl").read_text(encoding="utf-8").splitlines()]


def make(work: Path = WORK) -> None:
    """Write `work/unseen.jsonl`; its file names start at `work/icons`."""
    if (work / "unseen.jsonl").exists():
        return
    listed = json.loads(read_package(fetch(NAMES, work / "packages"))["data-by-emoji.json"])
    chosen = {concept.code for concept in read_concepts()}
    drawn = {file.stem for file in (work / "icons/noto").glob("*.png")}
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in unseen_rows(listed, chosen, drawn))
    (work / "unseen.jsonl").write_text(text, encoding="utf-8")
