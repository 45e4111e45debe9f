"""Captioned pictures for the zoo: free emoji art in six styles, aligned by code point, 64 x 64 on white.

`python -m recipes.zoo data` fetches the npm packages (24 MB), draws every concept that exists in all six styles, and
writes the concepts of `concepts.yaml` as an imagefolder with `metadata.jsonl`.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

STYLES = {  # style as captions say it -> npm package
    "noto": "@iconify-json/noto@1.2.9",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "openmoji": "@iconify-json/openmoji@1.2.29",
    "flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "high contrast": "@iconify-json/fluent-emoji-high-contrast@1.2.6",
    "3d": "@lobehub/fluent-emoji-3d@1.1.0",
}
NAMES, KEYWORDS = "unicode-emoji-json@0.9.0", "emojilib@4.0.3"
CONCEPTS = Path(__file__).with_name("concepts.yaml")
SIZE = 64
HELD_OUT = 0.1  # of the concepts, and of the (concept, style) pairs of the others


class Concept(NamedTuple):
    """One thing of `concepts.yaml`."""

    code: str
    name: str
    topic: str


def code_point(emoji: str) -> str:
    """`"☀️"` -> `"2600"`: hexadecimal code points joined by `-`, without the variation selector."""
    return clean_code("-".join(f"{ord(c):x}" for c in emoji))


def clean_code(code: str) -> str:
    """One spelling for the codes of all packages: lower case, no variation selector, no leading zeros."""
    parts = [part.lstrip("0") for part in code.lower().split("-")]
    return "-".join(part for part in parts if part and part != "fe0f")


def fraction(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone, so a longer list of concepts moves nobody to another split."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def split_of(concept: str, style: str) -> str:
    """`concept` (never seen in any style), `pair` (seen, but not in this style) or `train`."""
    if fraction(f"concept:{concept}") < HELD_OUT:
        return "concept"
    return "pair" if fraction(f"pair:{concept}:{style}") < HELD_OUT else "train"


def align(styles: dict[str, dict[str, str]], names: dict[str, str]) -> dict[str, dict[str, str]]:
    """Concepts that exist in every style.

    Args:
        styles: style -> {code point, or icon name where the package has no code -> picture reference}.
        names: code point -> hyphenated Unicode name, the fall-back.

    Returns:
        code point -> {style -> picture reference}, sorted by code point.
    """
    aligned = {}
    for code, name in sorted(names.items()):
        found = {style: icons.get(code) or icons.get(name) for style, icons in styles.items()}
        if all(found.values()):
            aligned[code] = {style: str(icon) for style, icon in found.items()}
    return aligned


def read_concepts(path: Path = CONCEPTS) -> list[Concept]:
    """The chosen concepts; a name or an emoji that appears twice raises `ValueError`."""
    topics = yaml.safe_load(path.read_text(encoding="utf-8"))
    concepts = [Concept(code_point(e), name, topic) for topic, rows in topics.items() for e, name in rows.items()]
    for values in ([c.code for c in concepts], [c.name for c in concepts]):
        twice = sorted({v for v in values if values.count(v) > 1})
        if twice:
            raise ValueError(f"every concept has one emoji and one name; {path.name} repeats {', '.join(twice)}")
    return concepts


def fetch(package: str, folder: Path) -> Path:
    """The `.tgz` of an npm package `name@version` in `folder`, downloaded with `npm pack` when absent."""
    name, version = package.lstrip("@").rsplit("@", 1)
    path = folder / f"{name.replace('/', '-')}-{version}.tgz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", package, "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return path


def read_package(path: Path) -> dict[str, bytes]:
    """Files of an npm archive by their path inside it."""
    with tarfile.open(path) as archive:
        members = [m for m in archive.getmembers() if m.isfile()]
        return {m.name.removeprefix("package/"): archive.extractfile(m).read() for m in members}  # type: ignore[union-attr]


def vector_icons(files: dict[str, bytes]) -> dict[str, str]:
    """SVG text of an iconify package by code point and by icon name; aliases resolved, each icon's own box."""
    pack, chars = json.loads(files["icons.json"]), json.loads(files["chars.json"])
    icons: dict[str, Any] = dict(pack["icons"])
    for alias, entry in pack.get("aliases", {}).items():
        parent = icons.get(entry["parent"])
        if parent is not None and not {"rotate", "hFlip", "vFlip"} & set(entry):
            icons[alias] = {**parent, **entry}
    drawn = {name: svg(icon, pack) for name, icon in icons.items()}
    return drawn | {clean_code(code): drawn[name] for code, name in chars.items() if name in drawn}


def svg(icon: dict[str, Any], pack: dict[str, Any]) -> str:
    """One icon as a square SVG: the shorter side is padded, so nothing is stretched."""
    width, height = icon.get("width", pack.get("width", 16)), icon.get("height", pack.get("height", 16))
    left, top, side = icon.get("left", 0), icon.get("top", 0), max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" color="black">{icon["body"]}</svg>'


def draw(picture: bytes | str) -> bytes:
    """PNG bytes, `SIZE` x `SIZE` on white, of an SVG text or of encoded pixels."""
    import resvg_py
    from PIL import Image

    if isinstance(picture, str):
        picture = bytes(resvg_py.svg_to_bytes(svg_string=picture, width=SIZE, height=SIZE, skip_system_fonts=True))
    image = Image.open(io.BytesIO(picture)).convert("RGBA")
    image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS) if image.size != (SIZE, SIZE) else image
    page = Image.new("RGBA", (SIZE, SIZE), "white")
    page.alpha_composite(image)
    out = io.BytesIO()
    page.convert("RGB").save(out, "PNG")
    return out.getvalue()


def load_pictures(packages: Path) -> tuple[dict[str, dict[str, bytes | str]], dict[str, str], dict[str, list[str]]]:
    """Pictures by style and code, Unicode names by code, keywords by code."""
    pictures: dict[str, dict[str, bytes | str]] = {}
    for style, package in STYLES.items():
        files = read_package(fetch(package, packages))
        if "icons.json" in files:
            pictures[style] = dict(vector_icons(files))
        else:
            pictures[style] = {clean_code(Path(f).stem): data for f, data in files.items() if f.endswith(".webp")}
    listed = json.loads(read_package(fetch(NAMES, packages))["data-by-emoji.json"])
    names = {code_point(e): row["slug"].replace("_", "-") for e, row in listed.items() if row["group"] != "Flags"}
    words = json.loads(read_package(fetch(KEYWORDS, packages))["dist/emoji-en-US.json"])
    keywords = {code_point(e): [w.replace("_", " ").lower() for w in row] for e, row in words.items()}
    return pictures, names, keywords


def rows(concepts: Iterable[Concept], known: set[str]) -> Iterator[dict[str, str]]:
    """Lines of `metadata.jsonl`; a concept that some style cannot draw raises `ValueError`."""
    for concept in concepts:
        if concept.code not in known:
            raise ValueError(f"a concept must exist in all styles; {concept.name!r} ({concept.code}) does not")
        for style in STYLES:
            yield {
                "file_name": f"{style.replace(' ', '-')}/{concept.code}.png",
                "text": f"{concept.name}, {style} style",
                "concept": concept.name,
                "style": style,
                "topic": concept.topic,
                "split": split_of(concept.name, style),
            }


def make(work: Path) -> None:
    """Write `work/icons` (everything, for the VAE), `work/data` (the imagefolder) and `work/keywords.json`."""
    if (work / "data/metadata.jsonl").exists():
        return
    pictures, names, keywords = load_pictures(work / "packages")
    available = align({s: {code: code for code in icons} for s, icons in pictures.items()}, names)
    for style in STYLES:
        folder = work / "icons" / style.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        for code, found in available.items():
            (folder / f"{code}.png").write_bytes(draw(pictures[style][found[style]]))
    concepts = read_concepts()
    lines = list(rows(concepts, set(available)))
    for line in lines:
        target = work / "data" / line["file_name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(work / "icons" / line["file_name"], target)
    words = {c.name: [w for w in keywords.get(c.code, []) if len(w) < 30] for c in concepts}
    (work / "keywords.json").write_text(json.dumps(words, indent=1, ensure_ascii=False), encoding="utf-8")
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (work / "data/metadata.jsonl").write_text(text, encoding="utf-8")
