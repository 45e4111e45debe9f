"""What a search maximises: scores of pictures that a merged model draws, or the held-out loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusemble.merging.search_config import HELD_OUT, SearchConfig
from diffusemble.registry import METRICS, OBJECTIVES, lookup

Objective = Callable[[Any], Tensor]
"""``objective(pipeline) -> scores [m]``, one for every picture; higher is better."""
Score = Callable[[Tensor, Sequence[str]], Tensor]
"""``score(images [b 3 h w] in [0, 1], prompts) -> scores [b]``; higher is better."""


def build_objective(config: SearchConfig, vae: Any) -> Objective:
    """What ``config.scorer`` asks for.

    Args:
        config: see ``SearchConfig``.
        vae: encodes pictures for the held-out loss.

    Raises:
        ValueError: the scorer compares sets of pictures or needs real ones, or cannot be imported.
        FileNotFoundError: its weights or pictures are missing.
    """
    if config.scorer == HELD_OUT:
        objective: Objective = lookup(OBJECTIVES, HELD_OUT, "objective")(config.held_out, vae)
        return objective
    return DrawnScores(config, load_score(config))


class DrawnScores:
    """Draw every prompt with every seed, and score the pictures with their prompts."""

    def __init__(self, config: SearchConfig, score: Score) -> None:
        self.config, self.score = config, score
        self.jobs = [(prompt, seed) for prompt in config.prompts for seed in config.seeds]

    def __call__(self, pipeline: Any) -> Tensor:
        """Scores ``[m]``, prompt by prompt, and seed by seed within a prompt."""
        found = []
        for start in range(0, len(self.jobs), self.config.batch):
            part = self.jobs[start : start + self.config.batch]
            scores = self.score(self._draw(pipeline, part), [prompt for prompt, _ in part])
            if tuple(scores.shape) != (len(part),):
                raise ValueError(
                    f"A scorer gives one number per picture, but {self.config.scorer!r} gave the shape "
                    f"{tuple(scores.shape)} for {len(part)} pictures. Return a tensor [b]."
                )
            found.append(scores.detach().float().cpu())
        return torch.cat(found)

    def _draw(self, pipeline: Any, jobs: Sequence[tuple[str, int]]) -> Tensor:
        config = self.config
        images: Tensor = pipeline(
            prompt=[prompt for prompt, _ in jobs],
            negative_prompt=[config.negative] * len(jobs) if config.negative else None,
            generator=[torch.Generator("cpu").manual_seed(seed) for _, seed in jobs],
            num_inference_steps=config.steps,
            guidance_scale=config.guidance,
            height=config.height,
            width=config.width,
            output_type="pt",
        ).images
        return images.float().cpu()


def load_score(config: SearchConfig) -> Score:
    """The scorer of a configuration, turned so that higher is better.

    Raises:
        ValueError: it is no scorer of pictures and prompts, or cannot be imported.
        FileNotFoundError: its weights are missing.
    """
    if ":" in config.scorer:
        return _own_score(config.scorer)
    cls = lookup(METRICS, config.scorer, "scorer")
    if cls.kind != "image" or cls.against != "prompt":
        raise ValueError(
            f"A search scores each picture with its prompt; {config.scorer!r} compares with other pictures. Choose "
            f"another scorer, such as imagereward, or {HELD_OUT}."
        )
    scorer = cls.load(None if config.scorer_weights is None else Path(config.scorer_weights), config.device)
    if cls.higher_is_better:
        better: Score = scorer
        return better
    return lambda images, prompts: -scorer(images, prompts)


def _own_score(name: str) -> Score:
    module, _, attribute = name.partition(":")
    try:
        score: Score = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"The scorer {name!r} cannot be imported ({error}). Write module:callable, and put the module's folder on "
            f"PYTHONPATH."
        ) from error
    if not callable(score):
        raise ValueError(f"The scorer {name!r} is {type(score).__name__}, not a callable score(images, prompts).")
    return score
