"""Single ``.safetensors`` files as shared on model sites: of SD 1.x, FLUX, Z-Image and whatever else is loaded.

Such a file holds weights without configuration, in the layout of the original code or of diffusers. The
configuration, the tokenizers and whatever the file leaves out come from a *base*: a diffusers folder or hub repository
of the same architecture. Every tensor of the file is read once, straight into its place.
"""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import nn

from diffusemble.experts.assembly import Plan, choose, empty, fill
from diffusemble.experts.base import Base, checkpoint_contents, open_base, remedy
from diffusemble.experts.checksums import DENOISERS, WEIGHTS, sha256
from diffusemble.experts.folder import quiet
from diffusemble.experts.formats.checkpoint import Checkpoint, open_checkpoint
from diffusemble.experts.formats.contents import TEXT_STARTS, VAE_STARTS
from diffusemble.experts.formats.header import Header, read_header
from diffusemble.experts.formats.marks import marked_schedule
from diffusemble.experts.layouts.origin import Layout
from diffusemble.experts.layouts.parts import (
    READABLE_VAES,
    UNUSED,
    denoiser_layouts,
    known_tensors,
    text_layouts,
    vae_layouts,
)
from diffusemble.experts.shelf import Shelf
from diffusemble.experts.sources import Source

_LOG = logging.getLogger(__name__)


def open_file(file: Path, base: Source, shelf: Shelf) -> tuple[DiffusionPipeline, dict[str, str]]:
    """Pipeline of a file, and the SHA-256 of what it was read from.

    Args:
        file: a ``.safetensors`` file that holds a denoiser at least.
        base: what gives configuration and missing parts.
        shelf: parts that have been read before, and the number type of the weights.

    Returns:
        The pipeline, and checksums: of the file, and as ``base:<path>`` of text encoders that the base gave.

    Raises:
        ValueError: the file is damaged or holds something else, or does not fit the base.
    """
    header = read_header(file)
    contents = checkpoint_contents(header)
    opened = open_base(base)
    opened.check_family(contents, header)
    inside = tuple(part for part in contents.parts if opened.has(part) and part not in DENOISERS)
    if "vae" in inside and opened.cls("vae").__name__ not in READABLE_VAES:
        _LOG.warning(f"{file} holds a VAE in a layout that is not read here; that of {base} takes its place.")
        inside = tuple(part for part in inside if part != "vae")
    read = (opened.denoiser, *inside)
    with open_checkpoint(header) as checkpoint, quiet():
        parts = {part: _part(part, opened, checkpoint, shelf.dtype) for part in read}
    pipeline = shelf.open(opened.where, base.revision, instead=parts)
    _mark_schedule(pipeline, header)
    others = shelf.checksums(base, read)
    return pipeline, {WEIGHTS: sha256(file), **{f"base:{name}": checksum for name, checksum in others.items()}}


def _part(part: str, base: Base, checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    cls, file = base.cls(part), checkpoint.header.file
    try:
        model = empty(cls, base.config(part))
        plan = choose(model, _layouts(part, model), checkpoint)
        if part in DENOISERS:
            _refuse_left_over(plan, checkpoint, cls)
        fill(model, plan, checkpoint, dtype, known_tensors(model, plan.prefix))
    except (KeyError, ValueError, RuntimeError, TypeError, OSError) as error:
        reason = f"it lacks the tensor {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise ValueError(
            f"{file}: its {part} cannot be read as {cls.__name__} with the configuration of {base.source}: {reason}. "
            f"{remedy(checkpoint.header, checkpoint_contents(checkpoint.header))} If this base is one, copy or "
            f"download the file again."
        ) from error
    return model


def _layouts(part: str, model: nn.Module) -> list[tuple[str, Layout]]:
    if part in DENOISERS:
        return denoiser_layouts(model)
    return vae_layouts() if part == "vae" else text_layouts(part, model)


def _refuse_left_over(plan: Plan, checkpoint: Checkpoint, cls: Any) -> None:
    others = tuple(start for starts in (VAE_STARTS, *TEXT_STARTS.values()) for start in starts)
    rest = plan.left_over(checkpoint, but=(*others, "model_ema.", "cond_stage", "conditioner.", "text_encoders."))
    rest = [key for key in rest if key.removeprefix(plan.prefix) not in UNUSED]
    rest = [key for key in rest if plan.prefix or "." in key]  # buffers of the training code, marks of model sites
    if rest:
        raise ValueError(f"it has {len(rest)} tensors that {cls.__name__} does not have there, such as {rest[0]!r}")


def _mark_schedule(pipeline: DiffusionPipeline, header: Header) -> None:
    """Let the file's own marks hold where they and the base's scheduler differ."""
    scheduler: Any = pipeline.scheduler
    marks = marked_schedule(header)
    known = inspect.signature(type(scheduler)).parameters.keys()
    if "prediction_type" not in known:  # flow matching
        return
    if marks.keys() <= known and all(scheduler.config[key] == value for key, value in marks.items()):
        return
    # PNDM and others of the older schedulers cannot reach zero terminal SNR.
    cls = type(scheduler) if marks.keys() <= known else DDIMScheduler
    pipeline.register_modules(scheduler=cls.from_config(scheduler.config, **marks))
