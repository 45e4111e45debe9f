"""Where the weights of a scene's controls are, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import CLIPVisionModelWithProjection

from diffusemble.config.generate import ExpertRecord
from diffusemble.controls.layouts import unet_file
from diffusemble.experts.checksums import sha256
from diffusemble.experts.folder import locate
from diffusemble.experts.sources import parse_source
from diffusemble.scene.conditions import CONTROLS
from diffusemble.scene.config import SceneConfig
from diffusemble.scene.member_config import MemberConfig
from diffusemble.zoo import SCENES, control_file, image_encoder_folder

ZOO_BASE = f"zoo:{SCENES}"
PUBLISHED_SHARES = {"interaction": 1.0, "gligen": 1.0, "migc": 0.5}
TRAINED_SHARES = {**PUBLISHED_SHARES, "migc": 1.0}  # of the zoo's own


def shares_of(scene: SceneConfig) -> Mapping[str, float]:
    """Share of the schedule in which each kind of control works, if its member does not say."""
    return TRAINED_SHARES if scene.base == ZOO_BASE else PUBLISHED_SHARES


def load_control(part: MemberConfig, base: str) -> tuple[Any, Path]:
    """The control of a member, and the file or folder it came from.

    Args:
        part: its ``source`` is a file or folder in a published layout, a hub id, or ``zoo:<kind>``.
        base: of the scene; the zoo's has controls of its own.

    Raises:
        ValueError: there are no weights, or they are of another kind.
    """
    own = f"zoo:{part.kind}" if base == ZOO_BASE else None
    source = part.source or own
    if source is None:
        raise ValueError(
            f"The member {part.name!r} needs the weights of its control, and only the base {ZOO_BASE} comes with some. "
            f"Give source: a .safetensors file or a diffusers folder."
        )
    kind, _, name = source.partition(":")
    if kind == "zoo":
        place = control_file(name.replace("-", "_"))
    elif Path(source).exists() or source.endswith((".safetensors", ".ckpt", ".pt", ".pth", ".bin")):
        place = Path(source)
    else:
        place, _ = locate(parse_source(source)[0])
    return CONTROLS[part.kind].from_pretrained(place).eval(), place


def image_encoder(part: MemberConfig, base: str) -> tuple[Path, Any, Any]:
    """Folder, encoder and image processor of an image prompt.

    Raises:
        ValueError: the member names none, and the base comes with none; or the folder holds none.
    """
    if part.encoder is None and base != ZOO_BASE:
        raise ValueError(
            f"The image prompt {part.name!r} needs the picture encoder that its weights were trained with. Give "
            f"encoder: the folder of a CLIPVisionModelWithProjection (models/image_encoder of h94/IP-Adapter)."
        )
    folder = image_encoder_folder() if part.encoder is None else Path(part.encoder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no folder of a picture encoder: it has no config.json.")
    encoder = CLIPVisionModelWithProjection.from_pretrained(folder, use_safetensors=True).eval()
    # The newer class needs torchvision, where there are two.
    reader = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    has_own = (folder / "preprocessor_config.json").is_file()
    return folder, encoder, reader.from_pretrained(folder) if has_own else reader()


def record_of(name: str, place: Path) -> ExpertRecord:
    """SHA-256 of a file, or of the weights in a folder."""
    files = [place] if place.is_file() else sorted(place.glob("*.safetensors"))
    if not files and place.is_dir():
        files = [unet_file(place)[0]]
    root = place if place.is_dir() else place.parent
    marks = {file.relative_to(root).as_posix(): sha256(file) for file in files if file.is_file()}
    return ExpertRecord(name=name, source=str(place), files=marks)
