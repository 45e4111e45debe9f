"""Single ``.safetensors`` files in the layout of the original Stable Diffusion code (LDM), as shared on model sites.

Such a file holds weights without configuration. The configuration, the tokenizers and whatever the file leaves out
come from a *base*: a diffusers folder or hub repository of the same architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.loaders.single_file_utils import SingleFileComponentError

from diffusemble.experts.checksums import WEIGHTS, check_readable, folder_checksums, read_index, sha256
from diffusemble.experts.folder import first_sentence, locate, open_folder, quiet
from diffusemble.experts.sources import Source

_DENOISER = "model.diffusion_model."
_PARTS = {
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.transformer."),
    "text_encoder_2": ("conditioner.embedders.1.model.", "conditioner.embedders.0.model."),
}
_REMEDY = (
    "Give base= a diffusers folder or hub id of the file's own architecture; it also supplies the parts that the file "
    "lacks. If that is what it was, copy or download the file again."
)
_OTHERS = {
    "lora_": "a LoRA",
    "control_model.": "a ControlNet",
    "encoder.conv_in": "a VAE alone",
    "down_blocks.": "a diffusers denoiser alone",
}


def open_file(file: Path, base: Source | None, dtype: torch.dtype) -> tuple[DiffusionPipeline, dict[str, str]]:
    """Pipeline of a file, and the SHA-256 of what it was read from.

    Args:
        file: a ``.safetensors`` file in LDM layout.
        base: what gives configuration and missing parts; diffusers' default repository for the file by default.
        dtype: number type of the weights.

    Returns:
        The pipeline, and checksums: of the file, and as ``base:<path>`` of text encoders that the base gave.

    Raises:
        ValueError: the file is damaged or holds something else, or does not fit the base.
    """
    keys = check_readable(file)
    _refuse_others(file, keys)
    inside = tuple(part for part, starts in _PARTS.items() if any(key.startswith(starts) for key in keys))
    parts = {} if base is None else _from_base(base, inside, dtype)
    cls = parts.pop("class", _class_of(inside))
    settings: dict[str, Any] = {} if base is None else {"config": _where(base), "revision": base.revision}
    try:
        with quiet():
            pipeline = cls.from_single_file(str(file), dtype=dtype, **settings, **parts)
    except (ValueError, RuntimeError, KeyError, TypeError, OSError, SingleFileComponentError) as error:
        raise ValueError(_does_not_fit(file, base, cls, error)) from error
    _check_complete(pipeline, keys, file, base)
    _check_prediction(pipeline, keys, file)
    return pipeline, {WEIGHTS: sha256(file), **_base_checksums(base, inside)}


def _from_base(base: Source, inside: tuple[str, ...], dtype: torch.dtype) -> dict[str, Any]:
    rest = open_folder(_where(base), dtype, revision=base.revision, without=("unet", *inside))
    return {"class": type(rest), **{name: part for name, part in rest.components.items() if part is not None}}


def _where(base: Source) -> str:
    return base.where if base.kind == "hub" else str(locate(base)[0])


def _base_checksums(base: Source | None, inside: tuple[str, ...]) -> dict[str, str]:
    if base is None or base.kind == "hub":  # a hub base is pinned by its commit
        return {}
    folder, _ = locate(base)
    checksums = folder_checksums(folder, read_index(folder), skip=("unet", *inside))
    return {f"base:{file}": checksum for file, checksum in checksums.items()}


def _class_of(inside: tuple[str, ...]) -> type:
    if "text_encoder_2" not in inside:
        return StableDiffusionPipeline
    return StableDiffusionXLPipeline if "text_encoder" in inside else StableDiffusionXLImg2ImgPipeline


def _refuse_others(file: Path, keys: frozenset[str]) -> None:
    if any(key.startswith(_DENOISER) for key in keys):
        return
    fitting = (what for start, what in _OTHERS.items() if any(key.startswith(start) for key in keys))
    raise ValueError(
        f"{file} is no Stable Diffusion checkpoint: none of its {len(keys)} tensors starts with {_DENOISER!r}. It "
        f"seems to be {next(fitting, 'something else')}. Give a full checkpoint, or a diffusers folder."
    )


def _check_complete(pipeline: DiffusionPipeline, keys: frozenset[str], file: Path, base: Source | None) -> None:
    """Every tensor came from somewhere and every denoiser tensor of the file was used; diffusers checks neither."""
    configuration = f"the configuration of {base or 'its default repository'}"
    for part, module in pipeline.components.items():
        tensors: Mapping[str, torch.Tensor] = module.state_dict() if isinstance(module, torch.nn.Module) else {}
        for key, tensor in tensors.items():
            if tensor.is_meta:
                raise ValueError(f"{file} lacks the tensor {key!r} of the {part}, which {configuration} has. {_REMEDY}")
    came, used = sum(key.startswith(_DENOISER) for key in keys), len(pipeline.unet.state_dict())
    if came != used:
        raise ValueError(f"{file} has {came} denoiser tensors, but {configuration} has {used} of them. {_REMEDY}")


def _check_prediction(pipeline: DiffusionPipeline, keys: frozenset[str], file: Path) -> None:
    prediction = pipeline.scheduler.config.prediction_type
    if "v_pred" in keys and prediction != "v_prediction":  # the marker that model sites use
        raise ValueError(
            f"{file} is marked as predicting v, but its configuration says {prediction!r}. Give base= a diffusers "
            f"folder whose scheduler has prediction_type 'v_prediction'."
        )


def _does_not_fit(file: Path, base: Source | None, cls: type, error: Exception) -> str:
    where = (
        f"the configuration of {base}" if base else "the default configuration, which diffusers fetches from the hub"
    )
    reason = f"it lacks {error}" if isinstance(error, KeyError) else first_sentence(error)
    if "meta tensor" in reason:  # what diffusers stumbles over when a tensor was not there to be read
        reason = "it lacks tensors that this configuration has"
    return f"{file} cannot be read as {cls.__name__} with {where} ({reason}). {_REMEDY}"
