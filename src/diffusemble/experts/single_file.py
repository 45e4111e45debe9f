"""Single ``.safetensors`` files as shared on model sites: SD 1.x, SD 2.x, SDXL, its refiner, SD3, SD3.5 and FLUX.

Such a file holds weights without configuration, in the layout of the original code or of diffusers. The
configuration, the tokenizers and whatever the file leaves out come from a *base*: a diffusers folder or hub repository
of the same architecture. Every tensor of the file is read once, straight into its place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import transformers
from diffusers import DiffusionPipeline
from torch import nn

from diffusemble.experts.assembly import Plan, choose, empty, fill
from diffusemble.experts.checksums import DENOISERS, WEIGHTS, sha256
from diffusemble.experts.folder import config_folder, index_of, locate, pin, quiet
from diffusemble.experts.formats.checkpoint import Checkpoint, open_checkpoint
from diffusemble.experts.formats.contents import CHECKPOINT, TEXT_STARTS, VAE_STARTS, Contents, contents_of
from diffusemble.experts.formats.families import DENOISER, REPOSITORIES, alike, family_of_config
from diffusemble.experts.formats.header import Header, read_header
from diffusemble.experts.layouts.parts import denoiser_layouts, known_tensors, text_layouts, vae_layouts
from diffusemble.experts.shelf import Shelf
from diffusemble.experts.sources import Source

_REMEDY = (
    "Give base= a diffusers folder or hub id of the file's own architecture; it also supplies the parts that the file "
    "lacks. If that is what it was, copy or download the file again."
)


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
    where = base.where if base.kind == "hub" else str(locate(base)[0])
    index = index_of(where, base.revision)
    denoiser = next(part for part in DENOISERS if index.get(part) is not None)
    reader = _Reader(header, base, where, index, shelf)
    reader.check_family(contents, denoiser)
    inside = tuple(part for part in contents.parts if part in index and part not in DENOISERS)
    with open_checkpoint(header) as checkpoint, quiet():
        parts = {part: reader.part(part, checkpoint) for part in (denoiser, *inside)}
    pipeline = shelf.open(where, base.revision, instead=parts)
    _mark_schedule(pipeline, header)
    others = shelf.checksums(base, (denoiser, *inside))
    return pipeline, {WEIGHTS: sha256(file), **{f"base:{name}": checksum for name, checksum in others.items()}}


def default_base(file: Path) -> Source:
    """The hub repository that gives a file its configuration where no base was named, at its commit of now.

    Raises:
        ValueError: the file is none that can be read, or the hub cannot be reached.
    """
    header = read_header(file)
    contents = checkpoint_contents(header)
    repository = REPOSITORIES[contents.family or ""]
    try:
        return pin(Source("hub", repository))
    except ValueError as error:
        raise ValueError(
            f"{file} is {contents}; without base= its configuration comes from the hub repository {repository}, which "
            f"could not be fetched. {_REMEDY}"
        ) from error


def checkpoint_contents(header: Header) -> Contents:
    """What a checkpoint holds.

    Raises:
        ValueError: the file is none, or of a family that is not supported; the message says what it is.
    """
    contents = contents_of(header)
    if contents.kind != CHECKPOINT:
        what = f"It is {contents}" if contents.kind != "unknown" else "What it is cannot be told from its names"
        raise ValueError(f"{header.file} is no checkpoint of a text-to-image model. {what}. {_use(contents)}")
    if contents.family not in DENOISER:
        raise ValueError(
            f"{header.file} is {contents}, and of this family no single files are read. Families that are: "
            f"{', '.join(DENOISER)}."
        )
    return contents


class _Reader:
    """Reads the parts of one file by the configurations of a base."""

    def __init__(self, header: Header, base: Source, where: str, index: dict[str, Any], shelf: Shelf) -> None:
        self.header, self.base, self.where, self.index, self.shelf = header, base, where, index, shelf

    def check_family(self, contents: Contents, denoiser: str) -> None:
        name = self.index[denoiser][1]
        aesthetics = bool(self.index.get("requires_aesthetics_score"))
        family = family_of_config(name, self._config(_class(self.index[denoiser]), denoiser), aesthetics)
        if not alike(contents.family, family) or DENOISER[contents.family or ""] != denoiser:
            raise ValueError(
                f"{self.header.file} is {contents}, but the base {self.base} is {family or name}. Give base= a "
                f"diffusers folder or hub id of {contents.family}."
            )

    def part(self, part: str, checkpoint: Checkpoint) -> nn.Module:
        cls = _class(self.index[part])
        try:
            model = empty(cls, self._config(cls, part))
            layouts = self._layouts(part, model)
            plan = choose(model, layouts, checkpoint)
            if part in DENOISERS:
                self._refuse_left_over(plan, checkpoint, cls)
            fill(model, plan, checkpoint, self.shelf.dtype, known_tensors(model, plan.prefix))
        except KeyError as error:
            raise ValueError(self._does_not_fit(part, cls, f"it lacks the tensor {error}")) from error
        except (ValueError, RuntimeError, TypeError, OSError) as error:
            raise ValueError(self._does_not_fit(part, cls, str(error))) from error
        return model

    def _config(self, cls: Any, part: str) -> Any:
        place = config_folder(self.where, self.base.revision, part)
        if issubclass(cls, transformers.PreTrainedModel):
            return cls.config_class.from_pretrained(place)
        return dict(cls.load_config(place))

    def _layouts(self, part: str, model: nn.Module) -> Any:
        if part in DENOISERS:
            return denoiser_layouts(model)
        return vae_layouts() if part == "vae" else text_layouts(part, model)

    def _refuse_left_over(self, plan: Plan, checkpoint: Checkpoint, cls: Any) -> None:
        others = tuple(start for starts in (VAE_STARTS, *TEXT_STARTS.values()) for start in starts)
        rest = plan.left_over(checkpoint, but=(*others, "model_ema.", "cond_stage", "conditioner.", "text_encoders."))
        rest = [key for key in rest if plan.prefix or "." in key]  # buffers of the training code, marks of model sites
        if rest:
            raise ValueError(f"it has {len(rest)} tensors that {cls.__name__} does not have there, such as {rest[0]!r}")

    def _does_not_fit(self, part: str, cls: Any, reason: str) -> str:
        return (
            f"{self.header.file}: its {part} cannot be read as {cls.__name__} with the configuration of {self.base}: "
            f"{reason}. {_REMEDY}"
        )


def marked_schedule(header: Header) -> dict[str, Any]:
    """Entries of a scheduler's configuration that a file itself tells, by the marks that model sites use."""
    told = header.metadata.get("modelspec.prediction_type", "")
    named = {"v": "v_prediction", "epsilon": "epsilon"}.get(told)
    marks: dict[str, Any] = {} if named is None else {"prediction_type": named}
    if "v_pred" in header.forms:
        marks["prediction_type"] = "v_prediction"
    if "ztsnr" in header.forms:
        marks["rescale_betas_zero_snr"] = True
    return marks


def _mark_schedule(pipeline: DiffusionPipeline, header: Header) -> None:
    """Let the file's own marks hold where they and the base's scheduler differ."""
    scheduler: Any = pipeline.scheduler
    marks = {key: value for key, value in marked_schedule(header).items() if key in scheduler.config}
    if any(scheduler.config[key] != value for key, value in marks.items()):
        pipeline.register_modules(scheduler=type(scheduler).from_config(scheduler.config, **marks))


def _class(entry: list[str]) -> Any:
    return getattr(diffusers if entry[0] == "diffusers" else transformers, entry[1])


def _use(contents: Contents) -> str:
    if contents.kind in ("LoRA", "LyCORIS", "textual inversion"):
        return "It goes on top of a model: model.safetensors+this.safetensors."
    if contents.kind == "VAE":
        return "It goes with a model: model.safetensors+this.safetensors, or vae= for all experts."
    if contents.kind == "ControlNet":
        return "It goes to ensemble.pipeline(cls, controlnet=...), opened with diffusers' ControlNetModel."
    return "Give a full checkpoint, or a diffusers folder."
