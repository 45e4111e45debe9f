"""Packs scenes and controls for shipping: the scenes' base in four bits like an expert, the controls in float16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusemble.evaluation.scenes import held
from diffusemble.zoo import experts
from recipes.zoo.data import STYLES, read_concepts
from recipes.zoo.pack import shrink
from recipes.zoo.scenes.base import held_errors
from recipes.zoo.scenes.data import Scenes
from recipes.zoo.settings import WORK
from recipes.zoo.unet import Parts

CONTROLS = ("interaction", "migc", "image_prompt")
REFERENCES = ("sunflower", "ghost", "top hat", "balloon")  # held-out concepts: nothing was trained on them


def halve(source: Path, target: Path) -> None:
    """A safetensors file in float16, its header kept."""
    with safe_open(str(source), framework="pt") as opened:
        header = opened.metadata()
        weights = {key: opened.get_tensor(key).half() for key in opened.keys()}  # noqa: SIM118
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, str(target), metadata=header)
    target.chmod(0o644)


def pack_base(work: Path, weights: Path) -> None:
    """Write the difference of the scenes' U-Net from the zoo's base."""
    file = experts.PARTS["unet"]
    delta = shrink(load_file(weights / "base" / file), load_file(work / "scenes" / file))
    target = weights / "controls/scenes/unet.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(delta, str(target), metadata={"format": "pt"})
    target.chmod(0o644)


def pack_encoder(work: Path, weights: Path) -> None:
    """Write the picture encoder as a transformers folder in float16."""
    source, target = work / "controls/image_encoder", weights / "controls/image_encoder"
    halve(source / "model.safetensors", target / "model.safetensors")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if key != "_name_or_path"} | {"dtype": "float32"}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(source / "preprocessor_config.json", target / "preprocessor_config.json")


def pack_scenes(work: Path, folder: Path) -> None:
    """Write the held-out scenes and the reference pictures of the styles."""
    (folder / "references").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(work / "scenes/held.jsonl", folder / "held.jsonl")
    codes = {concept.name: concept.code for concept in read_concepts()}
    for style in STYLES:
        for name in REFERENCES:
            spot = style.replace(" ", "-")
            shutil.copyfile(
                work / "data" / spot / f"{codes[name]}.png",
                folder / "references" / f"{spot}-{name.replace(' ', '-')}.png",
            )


def base_error(folder: Path, work: Path) -> float:
    """Mean squared noise error on held-out scenes, with full captions."""
    unet, parts = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32).eval(), Parts.load(work)
    found = held_errors(
        Scenes.load(work, "held"),
        lambda noisy, times, scenes, _: unet(noisy, times, parts.embed([s.caption() for s in scenes])).sample,
    )
    return float(found.mean())


def make(work: Path = WORK, weights: Path = experts.WEIGHTS, scenes: Path = held.FOLDER) -> None:
    """Write what ships, and `work/controls/pack.json` with the base's held-out error before and after, and sizes."""
    pack_base(work, weights)
    pack_encoder(work, weights)
    for name in CONTROLS:
        halve(work / f"controls/{name}.safetensors", weights / f"controls/{name}.safetensors")
    pack_scenes(work, scenes)
    before, after = base_error(work / "scenes/unet", work), base_error(experts.folder("scenes") / "unet", work)
    sizes = {
        str(path.relative_to(weights)): path.stat().st_size
        for path in sorted((weights / "controls").rglob("*"))
        if path.is_file()
    }
    report = {"before": before, "after": after, "bytes": sizes, "total": sum(sizes.values())}
    (work / "controls/pack.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
