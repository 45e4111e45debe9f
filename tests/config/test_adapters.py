"""Keys of adapters that cannot be are named before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from diffusemble.config.generate import GenerateConfig
from diffusemble.settings import load_config

UNREADABLE: dict[str, tuple[dict[str, Any], str]] = {
    "interval": ({"guidance_interval": [0.6, 0.4]}, "the first share must be below the second; got"),
    "share": ({"guidance_interval": [0.0, 1.4]}, r"guidance_interval\.1 .* got 1\.4"),
    "end before start": (
        {"controlnets": {"model": "m", "image": "i", "start": 0.5, "end": 0.2}},
        "a ControlNet acts from 'start' to a later 'end'; got 0.5 and 0.2",
    ),
    "pickle": ({"image_prompts": {"weights": "ip.bin", "image": "i"}}, "pickles can run programs; got 'ip.bin'"),
    "typo": ({"controlnets": [{"model": "m", "image": "i", "wait": 1}]}, r"there is no key 'controlnets\.0\.wait'"),
    "one mask of two": (
        {
            "image_prompts": [
                {"weights": "a.safetensors", "image": "i", "mask": "m"},
                {"weights": "b.safetensors", "image": "i"},
            ]
        },
        "give a 'mask' to every one of them, or to none",
    ),
    "two encoders": (
        {
            "image_prompts": [
                {"weights": "a.safetensors", "image": "i", "encoder": "e"},
                {"weights": "b.safetensors", "image": "i"},
            ]
        },
        "one image encoder; give all of them the same 'encoder'",
    ),
    "factor": ({"freeu": {"s1": 0.9, "s2": 0.2, "b1": 1.2}}, r"freeu\.b2.* missing"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_keys_that_cannot_be_are_named(name: str) -> None:
    settings, message = UNREADABLE[name]
    with pytest.raises(ValueError, match=message):
        load_config(GenerateConfig, None, (), prompts=["a fox"], **settings)
