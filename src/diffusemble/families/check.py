"""Which experts may be combined by what they predict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from diffusemble.experts.expert import Expert, latent_space, refuse_unlike
from diffusemble.families.base import Family
from diffusemble.latent.schedules import flows, prediction_kind
from diffusemble.parametrisation.paths import Flow, Path, Terms, VariancePreserving
from diffusemble.registry import BLOCKS, FAMILIES, lookup

_PARTS = ("vae", "scheduler", "text_encoder", "tokenizer")  # of the last two one is enough, whatever its number


def families_of(experts: Sequence[Expert]) -> tuple[Family, ...]:
    """How each of the experts is called, once it is certain that they share a latent space.

    Raises:
        ValueError: an expert lacks a part of its pipeline, is of an unknown architecture, or its latents mean
            something else; the message names the expert, the property, both values, and what would work.
    """
    for number, expert in enumerate(experts, start=1):
        missing = next(_missing(expert), None)
        if missing is not None:
            raise ValueError(
                f"Expert {number} ({expert.name!r}) has no {missing}. At output level every "
                f"expert keeps its own schedule, prediction and text encoders: load whole pipelines, with "
                f"load_experts([...])."
            )
    families = tuple(_family(expert) for expert in experts)
    refuse_unlike(
        [family.expert for family in families],
        lambda index: _properties(families[index], families[0]),
        lambda *_: (
            "What experts predict can be combined if their latents mean the same: use experts that share a VAE's "
            "latent space (SD 1.x, SD 2.x and PixArt-α; SDXL, PixArt-Σ and AuraFlow; SD 3; FLUX.1, Chroma and Z-Image)."
        ),
    )
    return families


def terms_of(scheduler: Any) -> Terms:
    """Path and prediction of an expert with this scheduler.

    Raises:
        ValueError: it predicts something unknown, or lies on no known path.
    """
    return Terms(_path(scheduler), prediction_kind(scheduler))


def _path(scheduler: Any) -> Path:
    if flows(scheduler):
        return Flow(scheduler.config.num_train_timesteps)
    if not hasattr(scheduler, "alphas_cumprod") or hasattr(scheduler, "precondition_inputs"):
        raise ValueError(
            f"{type(scheduler).__name__} has neither a table of ᾱ (diffusion) nor scale_noise (flow matching), so "
            f"nothing tells how much noise its model expects at which time. Give the expert the scheduler of its base "
            f"model, such as DDIM, DPM-Solver++, Euler or flow-matching Euler."
        )
    return VariancePreserving(scheduler.alphas_cumprod)


def _missing(expert: Expert) -> Iterator[str]:
    there = [name for name, part in expert.components.items() if part is not None]
    for part in _PARTS:
        if not any(name.startswith(part) for name in there):
            yield part
    if expert.pipeline_class is None:
        yield "pipeline class"


def _family(expert: Expert) -> Family:
    known = [cls.__name__ for cls in type(expert.denoiser).__mro__ if cls.__name__ in FAMILIES]
    name = known[0] if known else type(expert.denoiser).__name__
    if name in BLOCKS and name not in FAMILIES:
        raise ValueError(
            f"{expert.name!r} is a {name} ({BLOCKS[name].title}), which cannot be combined at output level yet. "
            f"Combine it with others of its architecture block by block (level: block, EnsembleDenoiser), or leave it "
            f"out."
        )
    family: Family = lookup(FAMILIES, name, "denoiser class for ensembles at output level")(expert)
    return family


def _properties(family: Family, first: Family) -> Iterator[tuple[str, Any, Any]]:
    mine, other = latent_space(family.parts["vae"]), latent_space(first.parts["vae"])
    yield from ((f"vae {key}", mine[key], other[key]) for key in mine)
    # An inpainting model also reads a mask and a picture; its input is no point of a path.
    yield "number of channels of the denoiser's input", family.channels, mine["latent_channels"]
    yield "number of channels of the denoiser's input", mine["latent_channels"], first.channels
