"""What gives a single file its configuration and the parts that it lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import transformers

from diffusemble.experts.checksums import DENOISERS
from diffusemble.experts.folder import config_folder, index_of, locate, pin
from diffusemble.experts.formats.contents import CHECKPOINT, Contents, contents_of
from diffusemble.experts.formats.families import DENOISER, REPOSITORIES, alike, family_of_config
from diffusemble.experts.formats.header import Header, read_header
from diffusemble.experts.sources import Source

REMEDY = (
    "Give base= a diffusers folder or hub id of the file's own architecture; it also supplies the parts that the file "
    "lacks. If that is what it was, copy or download the file again."
)


@dataclass(frozen=True)
class Base:
    """A diffusers folder or hub repository, whose weights need not be there.

    Attributes:
        source: as users name it.
        where: the folder or hub id.
        index: its ``model_index.json``.
    """

    source: Source
    where: str
    index: Mapping[str, Any]

    def has(self, part: str) -> bool:
        """Whether its pipeline has a part."""
        return isinstance(self.index.get(part), list) and self.index[part][0] is not None

    @property
    def denoiser(self) -> str:
        """Name of the denoiser among its parts."""
        return next(part for part in DENOISERS if self.has(part))

    @property
    def family(self) -> str | None:
        """Family of the denoiser; None if it is none that single files are read of."""
        aesthetics = bool(self.index.get("requires_aesthetics_score"))
        return family_of_config(self.index[self.denoiser][1], self.config(self.denoiser), aesthetics)

    def cls(self, part: str) -> Any:
        """Class of a part."""
        library, name = self.index[part]
        return getattr(diffusers if library == "diffusers" else transformers, name)

    def config(self, part: str) -> Any:
        """Configuration of a part, as its class takes it."""
        cls = self.cls(part)
        place = config_folder(self.where, self.source.revision, part)
        if issubclass(cls, transformers.PreTrainedModel):
            return cls.config_class.from_pretrained(place)
        return dict(cls.load_config(place))

    def check_family(self, contents: Contents, file: Path) -> None:
        """Make sure that a file can be of this architecture.

        Raises:
            ValueError: names both families.
        """
        if not alike(contents.family, self.family) or DENOISER[contents.family or ""] != self.denoiser:
            raise ValueError(
                f"{file} is {contents}, but the base {self.source} is {self.family or self.index[self.denoiser][1]}. "
                f"Give base= a diffusers folder or hub id of {contents.family}."
            )


def open_base(source: Source) -> Base:
    """The base at a source; of one on the hub, only configurations are fetched."""
    where = source.where if source.kind == "hub" else str(locate(source)[0])
    return Base(source, where, index_of(where, source.revision))


def choose_base(file: Path, candidates: Sequence[Source], named: bool) -> Source:
    """The base of a single file: the first of its family.

    Args:
        file: the single file.
        candidates: where bases are.
        named: whether the user named them as bases. Then one of another family is an error when the file is opened;
            else a hub repository of the file's family serves.

    Raises:
        ValueError: the file is none that can be read, or the hub cannot be reached.
    """
    contents = checkpoint_contents(read_header(file))
    families = [open_base(one).family for one in candidates]
    # SD 1.x and SD 2.x cannot always be told apart; a base of the very same name comes first.
    for fits in (
        lambda family: family == contents.family,
        lambda family: family is not None and alike(family, contents.family),
    ):
        for source, family in zip(candidates, families, strict=True):
            if fits(family):
                return source
    if named:
        return candidates[0]
    repository = REPOSITORIES[contents.family or ""]
    try:
        return pin(Source("hub", repository))
    except ValueError as error:
        raise ValueError(
            f"{file} is {contents}; without base= its configuration comes from the hub repository {repository}, which "
            f"could not be fetched. {REMEDY}"
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


def _use(contents: Contents) -> str:
    if contents.kind in ("LoRA", "LyCORIS", "textual inversion"):
        return "It goes on top of a model: model.safetensors+this.safetensors."
    if contents.kind == "VAE":
        return "It goes with a model: model.safetensors+this.safetensors, or vae= for all experts."
    if contents.kind == "ControlNet":
        return "It goes to ensemble.pipeline(cls, controlnet=...), opened with diffusers' ControlNetModel."
    return "Give a full checkpoint, or a diffusers folder."
