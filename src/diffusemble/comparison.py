"""A comparison: the same prompts and seeds by each expert alone, by their mean, and by the ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image

from diffusemble.aggregators.mean import Mean, MeanOptions
from diffusemble.config.generate import GenerateConfig
from diffusemble.drawing import Picture
from diffusemble.ensembles.base import Ensemble
from diffusemble.pictures.sheet import Column, contact_sheet
from diffusemble.pictures.text import COLOURS, FAINT, INK
from diffusemble.samplers import title_for

TOGETHER, MEAN, OUTPUT_MEAN = "ensemble", "block-wise mean", "mean prediction"


def ways_of(ensemble: Ensemble) -> dict[str, Ensemble]:
    """What a comparison shows: every expert alone, their mean where the ensemble is no plain one, and the ensemble.

    An expert that is called like one of the others gets its number behind its name.
    """
    if len(ensemble.experts) == 1:
        return {TOGETHER: ensemble}
    level, mean = type(ensemble), _plain(ensemble)
    taken = {TOGETHER, mean, title_of(ensemble)}
    ways = {
        f"{expert.name} (expert {number})" if expert.name in taken else expert.name: level([expert])
        for number, expert in enumerate(ensemble.experts, start=1)
    }
    if title_of(ensemble) != mean:
        ways[mean] = level(ensemble.experts, "mean")
    return {**ways, TOGETHER: ensemble}


def title_of(ensemble: Ensemble) -> str:
    """What the ensemble is called on the sheet: a mean is called one, and a single expert by its name."""
    own = ensemble.aggregator
    if len(ensemble.experts) == 1:
        return ensemble.experts[0].name
    if not isinstance(own, Mean):
        return TOGETHER
    if own.options == MeanOptions():
        return _plain(ensemble)
    if own.options.weights is not None:
        return "weighted mean"
    return OUTPUT_MEAN if len(own.points) == 1 else f"mean at {len(own.points)} points"


def sheet_of(drawn: Mapping[str, Sequence[Picture]], ensemble: Ensemble, config: GenerateConfig) -> Image.Image:
    """The pictures side by side.

    Args:
        drawn: pictures of every way, by its name.
        ensemble: what drew those of ``TOGETHER``.
        config: what was drawn.
    """
    title, sampler = title_of(ensemble), ensemble.experts[0].components["scheduler"]
    colours = dict(zip(drawn, COLOURS, strict=False)) | {MEAN: FAINT, OUTPUT_MEAN: FAINT, TOGETHER: INK}
    columns = [
        Column(title if way == TOGETHER else way, colours[way], [one.image for one in pictures], framed=way == TOGETHER)
        for way, pictures in drawn.items()
    ]
    several = len(config.seeds) > 1
    labels = [f"{picture.prompt} (seed {picture.seed})" if several else picture.prompt for picture in drawn[TOGETHER]]
    footer = [f"{config.steps} steps of {title_for(config.scheduler, sampler.config)}", f"guidance {config.guidance:g}"]
    footer += [] if several else [f"seed {config.seeds[0]}"]
    return contact_sheet(labels, columns, ", ".join(footer))


def _plain(ensemble: Ensemble) -> str:
    return MEAN if len(ensemble.points) > 1 else OUTPUT_MEAN
