"""What gives a single file its configuration and the parts that it lacks."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import transformers

from diffusemble.experts.checksums import DENOISERS
from diffusemble.experts.folder import config_folder, first_sentence, index_of, locate, pin
from diffusemble.experts.formats.checkpoint import refuse_quantised
from diffusemble.experts.formats.contents import CHECKPOINT, Contents, contents_of
from diffusemble.experts.formats.distilled import usual_settings
from diffusemble.experts.formats.editions import edition_of
from diffusemble.experts.formats.families import DENOISER, SHORT, alike, family_of_config
from diffusemble.experts.formats.header import Header, read_header
from diffusemble.experts.formats.marks import marked_schedule
from diffusemble.experts.sources import Source

_LOG = logging.getLogger(__name__)
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


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
        """Class of a part.

        Raises:
            ValueError: neither diffusers nor transformers has it.
        """
        library, name = self.index[part]
        cls = getattr(diffusers if library == "diffusers" else transformers, name, None)
        if cls is None:
            raise ValueError(
                f"The base {self.source} needs the class {name!r} of {library!r}, which is not known here."
            )
        return cls

    def config(self, part: str) -> Any:
        """Configuration of a part, as its class takes it.

        Raises:
            ValueError: it is missing or damaged.
        """
        cls = self.cls(part)
        try:
            place = config_folder(self.where, self.source.revision, part)
            if issubclass(cls, transformers.PreTrainedModel):
                return cls.config_class.from_pretrained(place)
            return dict(cls.load_config(place))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"The base {self.source} has no readable configuration of its {part} ({first_sentence(error)}). Copy "
                f"or download the folder again."
            ) from error

    def check_family(self, contents: Contents, header: Header) -> None:
        """Make sure that a file can be of this architecture, and is made for the noise of this base's scheduler.

        Raises:
            ValueError: names both families or processes.
        """
        file, family = header.file, contents.family or ""
        if not alike(family, self.family) or DENOISER[family] != self.denoiser:
            raise ValueError(
                f"{file} is {contents}, but the base {self.source} is {self.family or self.index[self.denoiser][1]}. "
                f"Give base= a diffusers folder or hub id of {family}."
            )
        scheduler = str(self.index.get("scheduler", ("", ""))[1])
        edition = edition_of(header, family)
        if edition.edm and not scheduler.startswith("EDM"):
            raise ValueError(
                f"{file} is {contents} {edition.name}, but the base {self.source} has a {scheduler}, which follows "
                f"another noise schedule. {remedy(header, contents)}"
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
    header = read_header(file)
    contents = checkpoint_contents(header)
    refuse_quantised(header)  # before a hub is asked for what could not be used
    if not named:
        _tell_of_distilled(header, contents)
        _tell_of_prediction(header, contents)
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
    repository = edition_of(header, contents.family or "").repository
    if repository is None:
        raise ValueError(f"{file} is {contents}, of which no repository is known. {remedy(header, contents)}")
    try:
        return pin(Source("hub", repository))
    except ValueError as error:
        raise ValueError(
            f"{file} is {contents}; without base= its configuration comes from the hub repository {repository}, which "
            f"could not be fetched: check the connection, and for gated models `hf auth login`. "
            f"{remedy(header, contents)}"
        ) from error


def _tell_of_distilled(header: Header, contents: Contents) -> None:
    usual = usual_settings(header, contents.family)
    if usual is not None:
        _LOG.warning(
            f"{header.file} may be distilled: such files are usually drawn with {usual}. Its scheduler comes from a "
            f"base that is not. Nothing is set by a name: give what you want, and base= (--base) to say that you know."
        )


def _tell_of_prediction(header: Header, contents: Contents) -> None:
    if contents.family == SHORT["sd2"] and "prediction_type" not in marked_schedule(header):
        _LOG.warning(
            f"{header.file} does not tell whether it predicts v or noise, and SD 2.x knows both. Its base decides: "
            f"without base= (--base) SD 2.1 for 768 px, which predicts v. SD-Turbo and models for 512 px predict "
            f"noise: with a base that does not they draw nothing else."
        )


def checkpoint_contents(header: Header) -> Contents:
    """What a checkpoint holds.

    Raises:
        ValueError: the file is none, or of a family that is not supported; the message says what it is.
    """
    if _SHARD.search(header.file.stem):
        raise ValueError(
            f"{header.file} is one of the pieces that a large model is cut into. Give the diffusers folder they are in."
        )
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


def remedy(header: Header, contents: Contents) -> str:
    """What to do where a checkpoint and its base do not fit."""
    edition = edition_of(header, contents.family or "")
    kind = "" if edition.name is None else f" ({edition.name})"
    known = "" if edition.repository is None else f", such as {edition.repository}"
    return (
        f"Give base= (--base) a diffusers folder or hub id of the file's own architecture{kind}{known}; it also "
        f"supplies the parts that the file lacks."
    )


def _use(contents: Contents) -> str:
    if contents.kind in ("LoRA", "LyCORIS", "textual inversion"):
        return "It goes on top of a model: model.safetensors+this.safetensors."
    if contents.kind == "VAE":
        return "It goes with a model: model.safetensors+this.safetensors, or vae= for all experts."
    if contents.kind == "ControlNet":
        return "It goes to ensemble.pipeline(cls, controlnet=...), opened with diffusers' ControlNetModel."
    return "Give a full checkpoint, or a diffusers folder."
