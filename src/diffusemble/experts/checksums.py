"""Which weight files make up an expert, and their SHA-256."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from diffusemble.experts.formats.header import read_header
from diffusemble.experts.sources import INDEX

DENOISERS = ("unet", "transformer")
WEIGHTS = "weights"  # stands for an expert that is one file, whatever its name


def sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_index(folder: Path) -> dict[str, Any]:
    """A diffusers folder's ``model_index.json``: part -> [library, class].

    Raises:
        ValueError: it is damaged, or has no denoiser.
    """
    index = read_json(folder / INDEX)
    if not any(_present(index, part) for part in DENOISERS):
        raise ValueError(
            f"{folder} holds a {index.get('_class_name', 'pipeline without a class')} without a denoiser "
            f"({' or '.join(DENOISERS)}). Give the folder of a text-to-image pipeline."
        )
    return index


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a model's folder.

    Raises:
        ValueError: it is missing or damaged.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} is not readable JSON ({error}). Copy or download the folder again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} should hold a JSON object, but holds a {type(found).__name__}. Copy it again.")
    return found


def variant_of(folder: Path) -> str | None:
    """``"fp16"`` where a folder's denoiser is there only in half precision, else None."""
    for part in DENOISERS:
        if (folder / part).is_dir():
            return part_variant(folder / part)
    return None


def part_variant(part: Path) -> str | None:
    """``"fp16"`` where a part's weights are there only in half precision, else None."""
    return "fp16" if not _chosen(part, None) and _chosen(part, "fp16") else None


def weight_files(folder: Path, index: dict[str, Any], *, skip: tuple[str, ...] = ()) -> dict[str, list[Path]]:
    """The safetensors files of the denoiser and of every text encoder, by part.

    Raises:
        ValueError: a part has no safetensors file.
    """
    variant = variant_of(folder)
    found = {}
    for part in index:
        if (part in DENOISERS or part.startswith("text_encoder")) and part not in skip and _present(index, part):
            found[part] = _chosen(folder / part, variant) or _chosen(folder / part, None)
            if not found[part]:
                raise ValueError(_no_weights(folder / part))
    return found


def folder_checksums(folder: Path, index: dict[str, Any], *, skip: tuple[str, ...] = ()) -> dict[str, str]:
    """SHA-256 of the safetensors files of the denoiser and the text encoders, by path relative to ``folder``.

    Raises:
        ValueError: a part has no safetensors file, or one of them is damaged.
    """
    found = {}
    for files in weight_files(folder, index, skip=skip).values():
        for file in files:
            check_readable(file)
            found[file.relative_to(folder).as_posix()] = sha256(file)
    return found


def check_readable(file: Path) -> None:
    """Make sure that a file is a whole safetensors file.

    Raises:
        ValueError: the file is missing, cut off or not a safetensors file; the message says what it is.
    """
    read_header(file)
    try:
        with safe_open(str(file), framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged ({error}). Copy or download it again.") from error


def _present(index: dict[str, Any], part: str) -> bool:
    return isinstance(index.get(part), list) and index[part][0] is not None


def _chosen(part: Path, variant: str | None) -> list[Path]:
    """The files diffusers opens: one, or those that an index of shards lists."""
    infix = f".{variant}" if variant else ""
    for stem in ("diffusion_pytorch_model", "model"):
        whole, shards = part / f"{stem}{infix}.safetensors", part / f"{stem}.safetensors.index{infix}.json"
        if whole.is_file():
            return [whole]
        if shards.is_file():
            names = read_json(shards).get("weight_map", {}).values()
            return [part / name for name in sorted(set(names))]
    return []


def _no_weights(part: Path) -> str:
    pickled = any(part.glob("*.bin"))
    found = "only pickle files (.bin), which could run any program" if pickled else "no weights"
    return f"{part} has {found}; experts are read from .safetensors files. Save the model with safe_serialization=True."
