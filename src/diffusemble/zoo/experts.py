"""Unpacks the shipped experts into diffusers folders.

The base is shipped whole. Of an expert only the difference of its own parts from the base's is shipped: in four bits
for every matrix, and the vectors as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = Path(__file__).with_name("weights")
PARTS = {
    "unet": Path("unet/diffusion_pytorch_model.safetensors"),
    "text_encoder": Path("text_encoder/model.safetensors"),
}
TOPICS, STYLES = ("people", "animals", "things"), ("shaded", "flat", "outlined")
GROUPS = {
    "topics": TOPICS,
    "styles": STYLES,
    "two": TOPICS[:2],
    "four": (*TOPICS, *STYLES[:1]),
    "five": (*TOPICS, *STYLES[:2]),
    "six": (*TOPICS, *STYLES),
}
SCENES = "scenes"  # the base of the controls: draws several things, and belongs to no ensemble
SCENES_SIDE = 12  # of its latents
GROUNDS: dict[str, dict[str, tuple[str, ...]]] = {
    "people": {"topic": ("people",)},
    "animals": {"topic": ("animals",)},
    "things": {"topic": ("things",)},
    "shaded": {"style": ("3d", "noto")},
    "flat": {"style": ("twemoji", "flat")},
    "outlined": {"style": ("openmoji", "high contrast")},
}


def groups() -> dict[str, tuple[str, ...]]:
    """The groups of experts that draw together: two of three, and the sizes between and beyond."""
    return dict(GROUPS)


def names() -> tuple[str, ...]:
    """Every model of the zoo: the base and the experts."""
    return ("base", *GROUNDS)


def on_ground(name: str, row: Mapping[str, str]) -> bool:
    """Whether a captioned picture (with its ``topic`` and ``style``) is of the kind an expert was made for."""
    return all(row[field] in values for field, values in GROUNDS[name].items())


def cache_folder() -> Path:
    """Where unpacked experts lie: `DIFFUSEMBLE_CACHE`, or the platform's folder for caches."""
    chosen = os.environ.get("DIFFUSEMBLE_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/diffusemble"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "diffusemble/cache"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "diffusemble"


def folder(name: str, cache: Path | None = None) -> Path:
    """A diffusers folder (float16) of one model of the zoo, unpacked on first use.

    Args:
        name: one of `names()`, or `scenes`: the base of the controls, for pictures of 96 x 96.
        cache: where to unpack; `cache_folder()` by default.

    Returns:
        A folder that `StableDiffusionPipeline.from_pretrained` opens. Its name carries a hash of the shipped files, so
        an upgrade of the package unpacks anew.

    Raises:
        ValueError: when the zoo has no model of that name.
    """
    root = Path(cache) if cache is not None else cache_folder()
    target = root / "zoo" / f"{name}-{fingerprint(name)[:16]}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            built = Path(temporary) / name
            unpack(name, built)
            move(built, target)
    return target


def fingerprint(name: str) -> str:
    """SHA-256 over the shipped files of one model, hexadecimal: the same on every machine.

    Raises:
        ValueError: when the zoo has no model of that name.
    """
    known = (*names(), SCENES)
    if name not in known:
        raise ValueError(f"the zoo has the models {', '.join(known)}; it has no {name!r}")
    shipped = sorted(path for path in (WEIGHTS / "base").rglob("*") if path.is_file())
    return digest([*shipped, *own_parts(name).values()])


def own_parts(name: str) -> dict[str, Path]:
    """Packed files of the parts that a model does not share with the base."""
    folder = WEIGHTS / ("controls" if name == SCENES else "experts") / name
    found = {part: folder / f"{part}.safetensors" for part in PARTS}
    return {part: file for part, file in found.items() if file.is_file()}


def digest(paths: list[Path]) -> str:
    """SHA-256 over the contents of files, hexadecimal."""
    total = hashlib.sha256()
    for path in paths:
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def move(built: Path, target: Path) -> None:
    """Rename a finished folder into place; whoever comes second keeps the first one's."""
    try:
        built.rename(target)
    except OSError:
        if not target.exists():
            raise


def unpack(name: str, target: Path) -> None:
    """Write the folder of one model: the base's files, with the expert's own parts."""
    shutil.copytree(WEIGHTS / "base", target)
    own = own_parts(name)
    if not own:
        return
    from safetensors.torch import load_file, save_file

    for part, file in own.items():
        whole = target / PARTS[part]
        save_file(restore(load_file(whole), load_file(file)), whole, metadata={"format": "pt"})
    if name == SCENES:
        config = target / "unet/config.json"
        sized = {**json.loads(config.read_text(encoding="utf-8")), "sample_size": SCENES_SIDE}
        config.write_text(json.dumps(sized, indent=2) + "\n", encoding="utf-8")


def restore(base: dict[str, Tensor], delta: dict[str, Tensor]) -> dict[str, Tensor]:
    """An expert from the base and its packed difference.

    A tensor `w` comes as itself, or as `w.levels` (uint8 `[rows ceil(columns/2)]`, two 4-bit levels in a byte, low half
    first) and `w.step` `[rows]`: then it is base + step * (level - 8), a kernel `[o c kh kw]` seen as `[o c*kh*kw]`.
    Sums are in float64, so that every machine rounds to the same float16 weights. What is missing is as in the base.

    Raises:
        ValueError: when the difference has a tensor that the base does not have.
    """
    import torch

    unknown = sorted(key for key in delta if key.removesuffix(".levels").removesuffix(".step") not in base)
    if unknown:
        raise ValueError(
            "a packed expert holds tensors of the base, as themselves or as .levels and .step; "
            f"this one has {unknown[0]!r}; pack it again with `python -m recipes.zoo pack`"
        )
    expert = {}
    for key, weight in base.items():
        if f"{key}.levels" in delta:
            packed, step = delta[f"{key}.levels"], delta[f"{key}.step"]
            levels = torch.stack([packed & 15, packed >> 4], dim=2).flatten(1)[:, : weight[0].numel()]
            change = step.double()[:, None] * (levels.double() - 8)
            expert[key] = (weight.double() + change.view(weight.shape)).to(weight.dtype)
        else:
            expert[key] = delta.get(key, weight)
    return expert
