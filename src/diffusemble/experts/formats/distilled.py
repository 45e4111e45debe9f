"""Distilled checkpoints, which draw in a few steps: nothing in their tensors tells, at most their names."""

from __future__ import annotations

import re

from diffusemble.experts.formats.families import DENOISER
from diffusemble.experts.formats.header import Header

_NAMED = ("modelspec.title", "ss_output_name")
"""Where training programs write a model's name."""
_USUAL = (
    (r"(?i:dmd2?)(?![a-z])", "DMD", "--steps 4 --guidance 1 --scheduler lcm"),
    (r"(?<![a-z])lcm|LCM", "LCM", "--steps 4 to 8 --guidance 1 to 2 --scheduler lcm"),
    (r"(?i:lightning)", "Lightning", "--steps as its name says (4 or 8) --guidance 1 --scheduler euler"),
    (r"(?i:hyper[-_ ]?sd)|Hyper(?![a-z])", "Hyper", "--steps as its name says (1 to 8) --guidance 1 --scheduler ddim"),
    (r"(?i:turbo)", "Turbo", "--steps 1 to 8 --guidance 1 to 2 --scheduler euler"),
)
"""By what stands in a name: the method, and what its models are usually drawn with."""


def usual_settings(header: Header, family: str | None) -> str | None:
    """How a checkpoint is usually drawn with, if its name says that it was distilled.

    Only U-Nets are looked at: members of other families that were distilled have configurations of their own.
    """
    if DENOISER.get(family or "") != "unet":
        return None
    names = (header.file.stem, *(header.metadata.get(key, "") for key in _NAMED))
    for pattern, method, settings in _USUAL:
        if any(re.search(pattern, name) for name in names):
            return f"{settings} (its name says {method})"
    return None
