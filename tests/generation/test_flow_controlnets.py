"""ControlNets of FLUX and SD 3 from a configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxControlNetPipeline, StableDiffusion3ControlNetPipeline
from PIL import Image

from diffusemble import EnsembleDenoiser
from diffusemble.adapters.install import adapted_pipeline
from diffusemble.config.generate import GenerateConfig
from diffusemble.drawing import draw
from tiny import as_expert, tiny_unet
from tiny_dit import flux_controlnet, sd3_controlnet, tiny_flux_pipeline, tiny_sd3_pipeline
from tiny_ensembles import controlnet

SEED, SIDE = 5, 16
# diffusers' own ControlNet calls what diffusers announces the end of.
pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")

FLOWS: dict[str, tuple[Callable[..., Any], Any, type]] = {
    "FLUX": (tiny_flux_pipeline, flux_controlnet, FluxControlNetPipeline),
    "SD 3": (tiny_sd3_pipeline, sd3_controlnet, StableDiffusion3ControlNetPipeline),
}


@pytest.fixture
def hint(tmp_path: Path) -> Image.Image:
    """Edges, also in ``hint.png``."""
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "hint.png")
    return picture


def together(build: Callable[..., Any]) -> EnsembleDenoiser:
    return EnsembleDenoiser([as_expert(build(seed), f"expert {seed}") for seed in (0, 1)])


def config_of(folder: Path, steps: int = 2, **changed: Any) -> GenerateConfig:
    one = {"model": str(folder / "edges"), "image": str(folder / "hint.png"), "weight": 0.6, **changed}
    fixed: dict[str, Any] = {"prompts": ["a fox"], "guidance": 4.0, "height": SIDE, "width": SIDE, "seeds": [SEED]}
    return GenerateConfig(controlnets=one, steps=steps, **fixed)


def numbers(image: Any) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("name", FLOWS)
def test_they_act_as_given_by_hand(name: str, hint: Image.Image, tmp_path: Path) -> None:
    build, make, cls = FLOWS[name]
    ensemble = together(build)
    vae = ensemble.experts[0].components["vae"]
    code = vae.encoder.conv_out if vae.quant_conv is None else vae.quant_conv
    with torch.no_grad():  # SD3's own pipeline draws noise for the picture's code without a generator: leave none
        code.weight[code.out_channels // 2 :] = 0
        code.bias[code.out_channels // 2 :] = -40
    net = make(ensemble.denoisers[0])
    net.save_pretrained(tmp_path / "edges")
    pipeline = ensemble.pipeline(cls, controlnet=net)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        ["a fox"],
        num_inference_steps=2,
        guidance_scale=4.0,
        height=SIDE,
        width=SIDE,
        max_sequence_length=pipeline.tokenizer_2.model_max_length,
        control_image=hint,
        controlnet_conditioning_scale=0.6,
        generator=[torch.Generator("cpu").manual_seed(SEED)],
    )
    (ours,) = draw(ensemble, config_of(tmp_path))
    assert np.abs(numbers(ours.image) - numbers(expected.images[0])).max() <= 1
    (silent,) = draw(ensemble, config_of(tmp_path, weight=0.0))
    assert np.abs(numbers(ours.image) - numbers(silent.image)).max() > 1


@pytest.mark.parametrize("name", FLOWS)
def test_pictures_are_drawn_again(name: str, hint: Image.Image, tmp_path: Path) -> None:
    """Whatever was drawn before: the code of the ControlNet's picture holds no noise that nobody seeds."""
    build, make, _ = FLOWS[name]
    ensemble = together(build)
    make(ensemble.denoisers[0]).save_pretrained(tmp_path / "edges")
    first, again = (draw(ensemble, config_of(tmp_path, steps=1))[0].image for _ in range(2))
    assert first.tobytes() == again.tobytes()


def test_a_controlnet_of_another_family_is_named(hint: Image.Image, tmp_path: Path) -> None:
    controlnet(tiny_unet()).save_pretrained(tmp_path / "edges")
    with pytest.raises(ValueError, match=r"edges is of class ControlNetModel, .* of class FluxControlNetModel"):
        adapted_pipeline(together(tiny_flux_pipeline), config_of(tmp_path))
