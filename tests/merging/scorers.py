"""Scorers of one's own, as `diffusemble search` imports them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from torch import Tensor

NUMBER = 3.0


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """How much more red than blue a picture is."""
    assert images.shape[0] == len(prompts)
    assert images.min() >= 0
    assert images.max() <= 1
    return (images[:, 0] - images[:, 2]).mean(dim=(1, 2))


def slow_redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """The same, with time to be killed in between."""
    time.sleep(float(os.environ.get("SCORER_SECONDS", "0")))
    return redness(images, prompts)


def constant(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """No preference."""
    return images.new_zeros(len(prompts))


def wrong_shape(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """One number for all pictures."""
    return images.mean()
