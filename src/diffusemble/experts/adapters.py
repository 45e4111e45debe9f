"""LoRA adapters that were trained together with an aggregator, on the experts' denoisers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

NAME = "distilled"
HEADER_KEY = "diffusemble.lora_rank"
TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
)
"""Every layer inside the blocks; what opens and closes a denoiser stays as it is."""
_OUTSIDE = {"proj_out": "proj_out", "noise_refiner": r"(?:noise|context)_refiner\..*"}
"""What is called as those are and lies outside of the blocks, by a module that a denoiser has then."""


def has_adapter(denoiser: nn.Module) -> bool:
    """Whether ``add_adapters`` or ``load_adapter`` gave it one."""
    return NAME in getattr(denoiser, "peft_config", {})


def add_adapters(denoisers: Iterable[Any], rank: int) -> None:
    """Give every denoiser an adapter that can be trained; as long as it is not, nothing changes.

    Raises:
        ValueError: a denoiser has one already.
    """
    for denoiser in {id(one): one for one in denoisers}.values():
        if has_adapter(denoiser):
            raise ValueError(
                "The experts of this ensemble have been distilled with LoRA already. Distil the ensemble that this one "
                "was made from, or set lora to 0."
            )
        # As a text, what is left out is a whole name: the last layer of FLUX and SD3, not those of blocks.
        outside = next((names for part, names in _OUTSIDE.items() if hasattr(denoiser, part)), None)
        settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS), exclude_modules=outside)
        denoiser.add_adapter(settings, adapter_name=NAME)


def adapter_files(denoisers: Sequence[Any], folder: Path) -> Iterator[tuple[Any, Path]]:
    """Every denoiser that has an adapter, and the file of a saved ensemble that holds it."""
    for number, denoiser in enumerate(denoisers):
        if has_adapter(denoiser):
            yield denoiser, folder / f"lora-{number}.safetensors"


def save_adapter(denoiser: Any, file: Path) -> dict[str, str]:
    """Write the adapter to one ``.safetensors``; the entry of ``ensemble.json`` that refers to it."""
    found = get_peft_model_state_dict(denoiser, adapter_name=NAME)
    weights = {key: weight.detach().cpu().contiguous() for key, weight in found.items()}
    save_file(weights, file, metadata={HEADER_KEY: str(denoiser.peft_config[NAME].r)})
    return {"file": file.name, "sha256": _checksum(file)}


def load_adapter(denoiser: Any, folder: Path, entry: Mapping[str, str]) -> None:
    """Give a denoiser the adapter that ``save_adapter`` wrote, in the denoiser's own number type.

    Raises:
        ValueError: the file is missing or has changed.
    """
    file = folder / entry["file"]
    if not file.is_file():
        raise ValueError(f"The adapter {file} is missing. Copy the whole folder of the ensemble again.")
    if _checksum(file) != entry["sha256"]:
        raise ValueError(f"The adapter {file} has changed since the ensemble was saved. Restore it, or distil again.")
    with safe_open(os.fspath(file), framework="pt") as opened:
        rank = int(opened.metadata()[HEADER_KEY])
    like = next(denoiser.parameters())
    add_adapters([denoiser], rank)
    refill_adapter(denoiser, file)
    for name, weight in denoiser.named_parameters():
        if ".lora_" in name:
            weight.data = weight.data.to(like.device, like.dtype)


def refill_adapter(denoiser: Any, file: Path) -> None:
    """Replace the weights of an adapter that is there already by those of a file."""
    set_peft_model_state_dict(denoiser, load_file(file), adapter_name=NAME)


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
