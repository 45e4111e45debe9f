"""Pictures that systems draw for a list of prompts: one PNG file each, which knows how it was made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image, ImageOps
from torch import Tensor

from diffusemble.evaluation.config import PicturesConfig
from diffusemble.evaluation.pictures import seed_of, to_bytes
from diffusemble.evaluation.prompts import Prompt
from diffusemble.evaluation.shards import Shards
from diffusemble.evaluation.systems import System
from diffusemble.pictures.metadata import save_png

PICTURES = "pictures"
ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class Job:
    """One picture to draw: ``number`` gives its noise, which is the same in every system; ``prompt`` is an index."""

    number: int
    prompt: int
    repeat: int


@dataclass(frozen=True)
class Gallery:
    """All pictures of a run.

    Attributes:
        config: of the run.
        prompts: what is drawn.
        notes: versions and hashes, written into every picture.
    """

    config: PicturesConfig
    prompts: tuple[Prompt, ...]
    notes: Mapping[str, Any]

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        """Every repeat draws all prompts, so that more repeats leave the numbers of the others as they are."""
        each = self.config.images
        whole = len(self.prompts) * each
        return tuple(
            Job(number, number % whole // each, number // whole) for number in range(whole * self.config.repeats)
        )

    def file(self, system: str, number: int) -> Path:
        """Where a picture is."""
        return Path(self.config.out) / PICTURES / system / f"{number:06d}.png"

    def draw(self, systems: Sequence[System], shards: Shards, tell: Callable[[float, str], None]) -> None:
        """Draw what is missing; a batch is the same whoever draws it, and whatever else is missing."""
        batches = [(system, part) for system in systems for part in self.parts(self.config.batch)]
        mine = shards.mine(batches)
        for done, (system, part) in enumerate(mine):
            tell(done / len(mine), f"drawing: {system.title}")
            missing = [job for job in part if not self.file(system.name, job.number).exists()]
            if missing:
                self._draw(system, part, {job.number for job in missing})

    def parts(self, size: int) -> Iterator[tuple[Job, ...]]:
        """All jobs in batches that end with a repeat, so that they stay the same when repeats are added."""
        whole = len(self.prompts) * self.config.images
        for first in range(0, len(self.jobs), whole):
            for start in range(first, first + whole, size):
                yield self.jobs[start : min(start + size, first + whole)]

    def images(self, system: str, jobs: Sequence[Job]) -> Tensor:
        """Drawn pictures ``[b 3 h w]`` in [0, 1]."""
        return torch.stack([read_picture(self.file(system, job.number), self.config.size) for job in jobs])

    def originals(self, jobs: Sequence[Job]) -> Tensor:
        """The real pictures of the jobs' prompts, ``[b 3 h w]`` in [0, 1]."""
        names = [self.prompts[job.prompt].file_name for job in jobs]
        files = [Path(self.config.originals) / name for name in names]
        return torch.stack([read_picture(file, self.config.size) for file in files])

    def references(self) -> tuple[Path, ...]:
        """The pictures that sets are compared with.

        Raises:
            ValueError: there are none.
        """
        folder = Path(self.config.references)
        found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
        if not self.config.references or not found:
            raise ValueError(
                f"FID and its kind compare with real pictures; references={self.config.references!r} has none. Give "
                f"references=FOLDER with .png, .jpg or .webp files, or leave these metrics out (metrics=[...])."
            )
        return tuple(found)

    def _draw(self, system: System, part: Sequence[Job], missing: set[int]) -> None:
        config = self.config
        images = system.draw(
            [self.prompts[job.prompt].text for job in part],
            [job.number for job in part],
            config.seed,
            num_inference_steps=config.steps,
            guidance_scale=config.guidance,
            height=config.size,
            width=config.size,
        )
        for job, pixels in zip(part, to_bytes(images), strict=True):
            if job.number in missing:
                self._save(system, job, Image.fromarray(pixels))

    def _save(self, system: System, job: Job, image: Image.Image) -> None:
        file, prompt = self.file(system.name, job.number), self.prompts[job.prompt].text
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = seed_of(self.config.seed, "draw", job.number)
        settings = {key: str(value) for key, value in system.settings.items()}
        document = {
            "evaluation": self.config.model_dump(mode="json"),
            "drawn": {"system": system.name, "prompt": prompt, "number": job.number, "seed": noise, **settings},
            "made_with": dict(self.notes),
        }
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        save_png(image, temporary, text, {"prompt": prompt, "seed": str(noise)})
        os.replace(temporary, file)  # a kill leaves no half picture


def read_picture(file: Path, size: int) -> Tensor:
    """A picture as ``[3 size size]`` in [0, 1]: the largest square in its middle, scaled.

    Raises:
        ValueError: there is no such file, or it is no picture.
    """
    try:
        with Image.open(file) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except OSError as error:
        raise ValueError(f"The picture {file} cannot be read: {error}. Restore it, or take it off the list.") from error
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
