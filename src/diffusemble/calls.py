"""How diffusers' pipelines of the different families are called for one and the same drawing."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from diffusemble.ensembles.base import Ensemble

_FROM_PICTURES = {"strength", "image_guidance_scale"}
"""Arguments by which diffusers' pipelines tell how much of a given picture remains."""


def check_draws_from_text(ensemble: Ensemble) -> None:
    """Make sure that the experts' own pipeline needs no picture to start from.

    Raises:
        ValueError: it does; says what these experts are for.
    """
    cls = ensemble.experts[0].pipeline_class
    if cls is not None and not _FROM_PICTURES.isdisjoint(inspect.signature(cls.__call__).parameters):
        raise ValueError(
            f"These experts go on from a picture and draw none from text alone: they belong to {cls.__name__}. "
            f"Refiners are the second stage of SDXL experts: --refiner-experts, or for a trained ensemble of them "
            f"--set refiner='{{ensemble: FOLDER, start: 0.8}}'. For others use ensemble.pipeline() in Python."
        )


def known(pipeline: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that calls of this pipeline take."""
    names = inspect.signature(type(pipeline).__call__).parameters
    return {name: value for name, value in settings.items() if name in names}


def guidance_of(pipeline: Any, scale: float, negative: Sequence[str]) -> dict[str, Any]:
    """How this pipeline is told the guidance scale and what not to draw, which is ``""`` for nothing.

    FLUX.1 dev guides itself. Beside Chroma, which has to be asked twice, it is told guidance 1, which adds nothing.
    Z-Image's pipelines are told how much is added to the prompt's prediction, so that none is 0.

    Raises:
        ValueError: something not to draw, for a FLUX whose guidance is built in, or a pipeline without such a prompt.
    """
    if any(negative) and not known(pipeline, {"negative_prompt": None}):
        raise ValueError(
            f"negative: {type(pipeline).__name__} draws the half without a prompt from an empty one and takes no "
            f"negative prompt. Leave 'negative' out, or call ensemble.pipeline() with negative_prompt_embeds."
        )
    if not known(pipeline, {"true_cfg_scale": None}):
        told = scale - 1 if is_z_image(pipeline) else scale
        return {"guidance_scale": told, **({"negative_prompt": list(negative)} if any(negative) else {})}
    built_in = pipeline.transformer.config.get("guidance_embeds", False)
    others = getattr(pipeline.transformer, "denoisers", ())
    if not built_in or any("guidance_embeds" not in other.config for other in others):
        twice = {"true_cfg_scale": scale, "negative_prompt": list(negative) if scale > 1 else None}
        return {**twice, "guidance_scale": 1.0} if built_in else twice
    if any(negative):
        raise ValueError(
            "negative: guidance is built into these experts (FLUX.1 dev), which takes the place of a negative prompt. "
            "Leave 'negative' out, or call ensemble.pipeline() with negative_prompt and true_cfg_scale."
        )
    return {"guidance_scale": scale}


def is_z_image(pipeline: Any) -> bool:
    """Whether it counts guidance from 0, and asks for the prompt before the negative one."""
    return bool(known(pipeline, {"cfg_truncation": None}))


def longest_prompt(pipeline: Any) -> dict[str, int]:
    """How long prompts may be in this pipeline, if it asks: as long as it says itself, and as the tokenizer takes."""
    limit = inspect.signature(type(pipeline).__call__).parameters.get("max_sequence_length")
    places = ("tokenizer_3", "tokenizer_2", "tokenizer")
    tokenizer = next((one for place in places if (one := getattr(pipeline, place, None)) is not None), None)
    if limit is None or tokenizer is None:
        return {}
    return {"max_sequence_length": min(limit.default, tokenizer.model_max_length)}
