"""Ensembles of tiny real experts in diffusers' own pipelines, and how the tests draw with both."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel

from diffusemble import EnsembleDenoiser
from diffusemble.experts.expert import Expert
from tiny import as_expert, randomised

N = 3
PROMPT = "a red fox"
NEGATIVE = "blurry, of many fingers and too long for the context"
ATOL = 2e-5
SMALL = {"height": 16, "width": 16}
Drawer = Callable[[Any], np.ndarray]


def copies(expert: Expert, n: int = 2) -> EnsembleDenoiser:
    """An ensemble of n experts that are all the same."""
    return EnsembleDenoiser(
        [Expert(f"copy {i}", expert.denoiser, expert.components, expert.pipeline_class) for i in range(n)]
    )


def different(whole: Sequence[Any]) -> EnsembleDenoiser:
    """An ensemble of the experts that these pipelines are."""
    return EnsembleDenoiser([as_expert(one, f"expert {i}") for i, one in enumerate(whole)])


def picture(seed: int = 0) -> torch.Tensor:
    """A picture ``[1 3 16 16]`` in [0, 1]."""
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def wide_picture(seed: int = 0) -> torch.Tensor:
    """A picture ``[1 3 16 24]`` in [0, 1]."""
    return torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(seed))


def mask(seed: int = 1) -> torch.Tensor:
    """A mask ``[1 1 16 16]`` of zeros and ones."""
    return (picture(seed)[:, :1] > 0.5).float()


def draw(pipeline: Any, **options: Any) -> np.ndarray:
    """One picture ``[b h w 3]``; ``options`` replaces arguments of the pipeline's call."""
    pipeline.set_progress_bar_config(disable=True)
    settings = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "num_inference_steps": 2,
        "guidance_scale": 4.0,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(11),
    }
    return pipeline(**{**settings, **options}).images


def stock(cls: type, whole: Any, **parts: Any) -> Any:
    """Diffusers' own pipeline ``cls`` with the parts of another."""
    own = {name: part for name, part in as_expert(whole).components.items() if not isinstance(part, bool)}
    unchecked = {} if "XL" in cls.__name__ else {"requires_safety_checker": False, "safety_checker": None}
    free = {} if "XL" in cls.__name__ else {"feature_extractor": None}
    return cls(unet=whole.unet, **{**own, **free, **parts}, **unchecked)


def rebuilt(whole: Any, cls: type | None, parts: dict[str, Any]) -> Any:
    """Diffusers' own pipeline ``cls`` (that of ``whole`` by default) with the parts of ``whole`` that it knows."""
    known = inspect.signature(cls or type(whole)).parameters
    return (cls or type(whole))(**{name: one for name, one in {**whole.components, **parts}.items() if name in known})


def check_copies(whole: Any, by: Drawer, cls: type | None = None, parts: Mapping[str, Any] | None = None) -> np.ndarray:
    """What ``whole`` draws, after a check that one copy of it and two draw the same, bit for bit: halves add up.

    All draw in ``cls`` with ``parts``, if these are given; ``by`` calls a pipeline.
    """
    parts = dict(parts or {})
    expected = by(rebuilt(whole, cls, parts))
    assert expected.std() > 0.03
    for n in (1, 2):
        np.testing.assert_array_equal(by(copies(as_expert(whole), n).pipeline(cls, **parts)), expected)
    return expected


def check_different(wholes: Sequence[Any], by: Drawer) -> None:
    """An ensemble of these pipelines draws something else than each of them, and these differ, too."""
    pictures = [by(different(wholes).pipeline()), *(by(whole) for whole in wholes)]
    for place, one in enumerate(pictures):
        assert all(unlike(one, other) for other in pictures[:place])


def controlnet(unet: Any, seed: int = 21) -> ControlNetModel:
    """A ControlNet for a U-Net, which changes what it is given."""
    torch.manual_seed(seed)
    return randomised(ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8)), seed)


def unlike(one: np.ndarray, other: np.ndarray, least: float = 0.01) -> bool:
    """Whether two pictures differ by more than rounding."""
    return bool(np.abs(one - other).max() > least)
