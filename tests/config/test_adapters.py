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
        r"controlnets\.0: it acts from 'start' to a later 'end'; got 0\.5 and 0\.2",
    ),
    "no step of a net": (
        {"t2i_adapters": {"model": "m", "image": "i", "start": 0.5, "end": 0.7}, "steps": 3},
        r"t2i_adapters: none of 3 steps lies between the shares 0\.5 and 0\.7 as a whole, so m would not act",
    ),
    "no step before the refiner": (
        {
            "t2i_adapters": {"model": "m", "image": "i", "start": 0.8},
            "steps": 5,
            "refiner": {"experts": "r", "start": 0.8},
        },
        r"none of 5 steps lies between the shares 0\.8 and 1 as a whole",
    ),
    "no step with guidance": (
        {"guidance_interval": [0.4, 0.5], "steps": 4},
        r"guidance_interval: none of 4 steps begins between 0\.4 and 0\.5",
    ),
    "no guidance to switch": (
        {"guidance_interval": [0.0, 0.5], "guidance": 1.0},
        "guidance_interval changes guidance, and there is none with guidance: 1",
    ),
    "no guidance to rescale": (
        {"guidance_rescale": 0.5, "guidance": 0.0},
        "guidance_rescale changes guidance, and there is none with guidance: 0",
    ),
    "no guidance away from anything": (
        {"negative": "fog", "guidance": 1.0},
        "negative changes guidance, and there is none with guidance: 1",
    ),
    "mode": ({"controlnets": {"model": "m", "image": "i", "mode": -1}}, r"controlnets\.0\.mode.* got -1"),
    "factor of nothing": ({"freeu": {"s1": 0, "s2": 0.2, "b1": 1.2, "b2": 1.2}}, r"freeu\.s1.* greater than 0"),
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
