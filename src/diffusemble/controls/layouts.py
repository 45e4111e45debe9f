"""The layouts that gated controls are published in, and their way to one: diffusers' names, adapter alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor, device, dtype, float32

from diffusemble.controls.storage import fill, read_control

# The transformer blocks of every Stable Diffusion 1.x U-Net.
SD1_BLOCKS = tuple(
    f"{part}.transformer_blocks.0"
    for part in (
        *(f"down_blocks.{level}.attentions.{place}" for level in (0, 1, 2) for place in (0, 1)),
        "mid_block.attentions.0",
        *(f"up_blocks.{level}.attentions.{place}" for level in (1, 2, 3) for place in (0, 1, 2)),
    )
)
SD1_HEADS = 8
_PROJECTION = re.compile(r"(?:^|\.)(position_net\..+)$")
_LAYER = re.compile(
    r"(?:^|\.)(?:(down_blocks\.\d+\.attentions\.\d+|mid_block\.attentions\.\d+|up_blocks\.\d+\.attentions\.\d+)"
    r"|(input_blocks\.\d+\.1|middle_block\.1|output_blocks\.\d+\.1))\.(transformer_blocks\.\d+\.fuser\..+)$"
)


def ldm_to_diffusers(block: str) -> str:
    """Diffusers' name of a block with attention, from its name in the original code: ``input_blocks.4.1`` becomes
    ``down_blocks.1.attentions.0``."""
    kind, *numbers = block.split(".")
    if kind == "middle_block":
        return "mid_block.attentions.0"
    number = int(numbers[0])
    if kind == "input_blocks":
        return f"down_blocks.{(number - 1) // 3}.attentions.{(number - 1) % 3}"
    return f"up_blocks.{number // 3}.attentions.{number % 3}"


def adapter_tensors(weights: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """The tensors of gated layers and their projection under diffusers' names, out of any published layout.

    Args:
        weights: a whole U-Net or checkpoint or the adapter alone, under diffusers' or the original names, with any
            prefix.
        source: where they come from, for messages.

    Raises:
        ValueError: there are none, two have one name, or there are others though this is no whole U-Net.
    """
    found: dict[str, Tensor] = {}
    others = []
    for key, tensor in weights.items():
        name = _own_name(key)
        if name in found:
            raise ValueError(f"{source} holds {name} twice, once as {key}. Give a file with one set of weights.")
        if name is None:
            others.append(key)
        else:
            found[name] = tensor
    if not found:
        raise ValueError(
            f"{source} holds no gated layers: none of its {len(weights)} tensors belongs to a fuser or a position_net. "
            f"Give the U-Net of InteractDiffusion or GLIGEN, or its adapter."
        )
    whole = any(key.endswith(("conv_in.weight", "input_blocks.0.0.weight")) for key in others)
    if others and not whole:
        raise ValueError(
            f"{source} has {len(others)} tensors that belong neither to gated layers nor to a whole U-Net, such as "
            f"{others[0]}. Give the file as it was published."
        )
    return found


def _own_name(key: str) -> str | None:
    if projection := _PROJECTION.search(key):
        return projection[1]
    if layer := _LAYER.search(key):
        return f"{layer[1] or ldm_to_diffusers(layer[2])}.{layer[3]}"
    return None


def unet_file(source: str | Path) -> tuple[Path, dict[str, Any]]:
    """The weights and the configuration of the U-Net in a diffusers folder.

    Args:
        source: a pipeline's folder, or its ``unet`` alone.

    Raises:
        ValueError: there is no configuration or no safetensors file.
    """
    folder = Path(source)
    folder = folder / "unet" if (folder / "unet").is_dir() else folder
    names = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
    files = [folder / name for name in names if (folder / name).is_file()]
    if files and (folder / "config.json").is_file():
        return files[0], json.loads((folder / "config.json").read_text())
    pickles = sorted(folder.glob("*.bin"))
    if pickles:
        raise ValueError(
            f"{folder} holds its weights as a pickle, which may run any code when it is opened. Convert it: python -m "
            f"diffusemble.controls.convert {pickles[0]} {folder / names[0]}"
        )
    raise ValueError(f"{folder} is no U-Net of diffusers: it needs config.json and {names[0]}. Download it whole.")


def plain_unet(source: str | Path, dtype: dtype = float32) -> Any:
    """The U-Net without the gated layers out of a published diffusers folder, which it was frozen in.

    Args:
        source: a pipeline's folder, or its ``unet`` alone.
        dtype: number type of the weights.

    Raises:
        ValueError: the folder is none, or its tensors do not fit its configuration.
    """
    file, config = unet_file(source)
    weights, _ = read_control(file)
    with device("meta"):
        unet = UNet2DConditionModel.from_config({**config, "attention_type": "default"})
    unet = unet.to_empty(device="cpu").to(dtype)
    fill(unet, {key: value for key, value in weights.items() if _own_name(key) is None}, file)
    return unet.eval()
