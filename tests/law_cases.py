"""What the laws of laws.py run on, and where one of them cannot hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TINY = {"preset": "tiny"}
CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "sabw": ("sabw", TINY),
    "sabw without space": ("sabw", {**TINY, "spatial": False}),
    "sabw without time": ("sabw", {**TINY, "time": False}),
    "sabw without text": ("sabw", {**TINY, "text": False}),
    "sabw with pooled tokens": ("sabw", {**TINY, "pool": 2, "pool_from": 3}),
    "mean": ("mean", {}),
    "magicfusion": ("magicfusion", {}),
}
"""What the laws run on, by name: a row of the table and options that make it tiny or take something from it."""
GUIDED = {"magicfusion"}
"""Rows that need the two halves of guidance: the same latents twice, with different texts."""
ONLY_LAST = {"magicfusion"}
"""Rows that aggregate nothing but predictions."""
EXCEPTIONS: Mapping[str, Mapping[str, str]] = {
    "magicfusion": {
        "training_starts_from_the_block_wise_mean": "it has nothing to learn and no features to average",
        "aggregating_last_is_noise_averaging": "at every place it takes one expert's noise and never an average",
    }
}
"""Laws that cannot hold for a row, and why."""
