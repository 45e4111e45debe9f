"""Every key of every adapter changes the picture, or is refused by name: nothing is accepted and ignored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import BaseModel
from safetensors.torch import save_file

from adapters.test_flux_image_prompts import encoder
from adapters.test_nets import flux_union
from diffusemble import EnsembleDenoiser
from diffusemble.config.adapters import AdapterConfig
from diffusemble.config.generate import GenerateConfig
from diffusemble.drawing import draw
from pipelines.test_controlnets import t2i, union
from stock import small_pipeline, small_sdxl
from tiny import as_expert
from tiny_dit import flux_controlnet, sd3_controlnet, tiny_chroma_pipeline, tiny_flux_pipeline, tiny_sd3_pipeline
from tiny_ensembles import controlnet
from tiny_flux2 import tiny_flux2_pipeline
from tiny_qwen import tiny_qwen_pipeline
from tiny_z_image import tiny_z_image_pipeline
from transformer_cases import flux_image_prompt_weights
from unet_inputs import image_prompt_weights

SIDE = 16
FAMILIES: dict[str, Callable[[int], Any]] = {
    "SD": small_pipeline,
    "SDXL": small_sdxl,
    "SD 3": tiny_sd3_pipeline,
    "FLUX": tiny_flux_pipeline,
    "Chroma": tiny_chroma_pipeline,
    "Qwen-Image": tiny_qwen_pipeline,
    "Z-Image": tiny_z_image_pipeline,
    "FLUX.2": tiny_flux2_pipeline,
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),  # diffusers' own
    pytest.mark.filterwarnings("ignore:The decode_latents method is deprecated:FutureWarning"),
]


@cache
def ensemble(family: str, use: str = "") -> EnsembleDenoiser:
    """Of one expert, which is faster. Image prompts stay in it, so theirs is another."""
    return EnsembleDenoiser([as_expert(FAMILIES[family](0))])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nets, adapters, an image encoder and pictures, of every family that has such."""
    home = tmp_path_factory.mktemp("keys")
    torch.manual_seed(0)
    nets = {"SD": controlnet, "SDXL": controlnet, "SD 3": sd3_controlnet, "FLUX": flux_controlnet}
    for family, make in nets.items():
        make(ensemble(family).denoisers[0]).save_pretrained(home / f"{family} net")
    for family, make in {"SDXL": union, "FLUX": flux_union}.items():
        make(ensemble(family).denoisers[0]).save_pretrained(home / f"{family} union")
    prompts = {"SD": image_prompt_weights, "SDXL": image_prompt_weights, "FLUX": flux_image_prompt_weights}
    for family, read in prompts.items():
        weights = read(ensemble(family).denoisers[0])
        flat = {f"{kind}.{key}": value for kind in weights for key, value in weights[kind].items()}
        save_file(flat, home / f"{family}.safetensors")
    for family in ("SD", "SDXL"):
        t2i(4).save_pretrained(home / f"{family} sketch")
    encoder().save_pretrained(home / "image_encoder")
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(home / "hint.png")
    left = Image.new("L", (SIDE, SIDE))
    left.paste(255, (0, 0, SIDE // 2, SIDE))
    left.save(home / "left.png")
    return home


def net_of(home: Path, family: str, kind: str = "net", **changed: Any) -> dict[str, Any]:
    return {"model": str(home / f"{family} {kind}"), "image": str(home / "hint.png"), **changed}


def prompt_of(home: Path, family: str, **changed: Any) -> dict[str, Any]:
    weights = home / f"{family if family in ('SD', 'SDXL', 'FLUX') else 'SD'}.safetensors"
    return {"weights": str(weights), "image": str(home / "hint.png"), **changed}


Settings = Callable[[Path, str], dict[str, Any]]


@cache  # so that what two keys are compared with is drawn once
def net(key: str, kind: str = "net", **changed: Any) -> Settings:
    return lambda home, family: {key: net_of(home, family, kind, **changed)}


@cache
def prompt(**changed: Any) -> Settings:
    def settings(home: Path, family: str) -> dict[str, Any]:
        mask = {"mask": str(home / changed["mask"])} if "mask" in changed else {}
        return {"image_prompts": prompt_of(home, family, **{**changed, **mask})}

    return settings


def bare(home: Path, family: str) -> dict[str, Any]:
    return {}


FACTORS = {"s1": 0.6, "s2": 0.4, "b1": 1.4, "b2": 1.6}
NETS, PROMPTED, GUIDED = {"SD", "SDXL", "SD 3", "FLUX"}, {"SD", "SDXL", "FLUX"}, {"SD", "SDXL", "SD 3"}
KEYS: dict[str, tuple[Settings, Settings, set[str]]] = {
    "controlnets": (bare, net("controlnets"), NETS),
    "controlnets.weight": (net("controlnets"), net("controlnets", weight=0.3), NETS),
    "controlnets.start": (net("controlnets"), net("controlnets", start=0.5), NETS),
    "controlnets.end": (net("controlnets"), net("controlnets", end=0.5), NETS),
    "controlnets.mode": (
        net("controlnets", "union", mode=0),
        net("controlnets", "union", mode=2),
        {"SDXL", "FLUX"},
    ),
    "t2i_adapters": (bare, net("t2i_adapters", "sketch"), {"SD", "SDXL"}),
    "t2i_adapters.weight": (net("t2i_adapters", "sketch"), net("t2i_adapters", "sketch", weight=0.3), {"SD", "SDXL"}),
    "t2i_adapters.start": (net("t2i_adapters", "sketch"), net("t2i_adapters", "sketch", start=0.5), {"SD", "SDXL"}),
    "t2i_adapters.end": (net("t2i_adapters", "sketch"), net("t2i_adapters", "sketch", end=0.5), {"SD", "SDXL"}),
    "image_prompts": (bare, prompt(), PROMPTED),
    "image_prompts.weight": (prompt(), prompt(weight=0.3), PROMPTED),
    "image_prompts.mask": (prompt(), prompt(mask="left.png"), {"SD", "SDXL"}),
    **{
        f"freeu.{factor}": (
            lambda home, family: {"freeu": FACTORS},
            lambda home, family, factor=factor: {"freeu": {**FACTORS, factor: 2 * FACTORS[factor]}},
            {"SD", "SDXL"},
        )
        for factor in FACTORS
    },
    "guidance_rescale": (bare, lambda home, family: {"guidance_rescale": 0.7}, {"SD", "SDXL"}),
    "guidance_interval": (bare, lambda home, family: {"guidance_interval": [0.0, 0.5]}, GUIDED),
}
FILES = {"model", "image", "weights", "encoder"}
"""What every adapter names, so that it is one."""


def cases() -> list[tuple[str, str]]:
    """Every key with every family; one that does not know an adapter refuses all its keys as it does the first."""
    adapters = {key: key.partition(".")[0] for key in KEYS}
    known = {(adapters[key], family) for key, (_, _, knowing) in KEYS.items() for family in knowing}
    firsts = {adapters[key]: key for key in reversed(KEYS)}
    return [
        (key, family)
        for family in FAMILIES
        for key, adapter in adapters.items()
        if (adapter, family) in known or key == firsts[adapter]
    ]


@pytest.mark.parametrize(("key", "family"), cases())
def test_a_key_changes_the_picture_or_is_refused_by_name(key: str, family: str, home: Path) -> None:
    before, after, knowing = KEYS[key]
    if family not in knowing:
        with pytest.raises(ValueError, match=rf"{key.partition('.')[0]}|Leave the interval out"):
            drawn(family, home, after)
        return
    one, other = (drawn(family, home, settings) for settings in (before, after))
    assert np.abs(one - other).max() > 0


@cache
def drawn(family: str, home: Path, settings: Settings) -> np.ndarray:
    fixed = {"prompts": ["a fox"], "seeds": [5], "steps": 2, "guidance": 4.0, "height": SIDE, "width": SIDE}
    config = GenerateConfig(**fixed, **settings(home, family))
    pictures = draw(ensemble(family, "prompted" if config.image_prompts else ""), config)
    for denoiser in ensemble(family).members:
        if config.freeu is not None:
            denoiser.disable_freeu()
    return np.asarray(pictures[0].image).astype(int)


def test_the_table_knows_every_key() -> None:
    of_adapters = {path for path in paths(AdapterConfig) if path.split(".")[-1] not in FILES}
    assert of_adapters - {"loras"} <= set(KEYS)  # those are part of the experts' sources


def paths(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        nested = [one for one in (field.annotation, *get_args(field.annotation)) if hasattr(one, "model_fields")]
        yield from (f"{name}.{path}" for path in paths(nested[0])) if nested else (name,)
