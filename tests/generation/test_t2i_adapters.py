"""T2I-adapters from a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import MultiAdapter, StableDiffusionAdapterPipeline, T2IAdapter
from PIL import Image

from diffusemble import guidance_interval
from diffusemble.adapters.install import adapted_pipeline
from diffusemble.config.generate import GenerateConfig
from diffusemble.drawing import draw
from diffusemble.samplers import build_scheduler
from stock import small_pipeline
from tiny import randomised
from tiny_dit import tiny_sd3_pipeline
from tiny_ensembles import controlnet, different

SIDE = 16
pytestmark = pytest.mark.filterwarnings(
    "ignore:The decode_latents method is deprecated:FutureWarning"
)  # diffusers' own


def adapter(seed: int) -> T2IAdapter:
    torch.manual_seed(seed)
    return randomised(T2IAdapter(3, [8, 16], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter"), seed)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two adapters and a picture."""
    for seed in (1, 2):
        adapter(seed).save_pretrained(tmp_path / f"adapter{seed}")
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "hint.png")
    return tmp_path


def config_of(*adapters: dict[str, Any], **settings: Any) -> GenerateConfig:
    fixed = {"prompts": ["a fox"], "seeds": [5], "steps": 2, "guidance": 4.0}
    return GenerateConfig(t2i_adapters=adapters, **{**fixed, **settings})


def test_they_act_as_given_by_hand(home: Path) -> None:
    together = different([small_pipeline(0), small_pipeline(1)])
    given = [{"model": str(home / f"adapter{seed}"), "image": str(home / "hint.png")} for seed in (1, 2)]
    first, second = {**given[0], "weight": 0.8}, {**given[1], "weight": 0.3}
    hint = Image.open(home / "hint.png").convert("RGB")
    for adapters, part, call in (
        ([first], adapter(1), {"image": hint, "adapter_conditioning_scale": 0.8}),
        ([first, second], MultiAdapter([adapter(1), adapter(2)]), {"image": [hint] * 2, **_scale([0.8, 0.3])}),
    ):
        pipeline = together.pipeline(StableDiffusionAdapterPipeline, adapter=part)
        pipeline.scheduler = build_scheduler("ddim", pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        size = {"height": SIDE, "width": SIDE, "num_inference_steps": 2, "guidance_scale": 4.0}
        with guidance_interval(pipeline, 0.0, 0.5):
            expected = pipeline("a fox", **size, **call, generator=torch.Generator().manual_seed(5)).images[0]
        prompts = {"prompts": ["a fox", "an owl"], "guidance_interval": [0.0, 0.5]}
        ours = [one.image for one in draw(together, config_of(*adapters, **prompts))]
        assert np.abs(np.asarray(ours[0]).astype(int) - np.asarray(expected).astype(int)).max() <= 1
    (silent,) = draw(together, config_of({**first, "weight": 0.0}))
    assert silent.image.tobytes() != draw(together, config_of(first))[0].image.tobytes()


def _scale(weights: list[float]) -> dict[str, Any]:
    return {"adapter_conditioning_scale": weights}


def test_what_cannot_be_used_is_named(home: Path) -> None:
    whole = small_pipeline(0)
    controlnet(whole.unet).save_pretrained(home / "edges")
    given = {"model": str(home / "edges"), "image": str(home / "hint.png")}
    with pytest.raises(ValueError, match=r"t2i_adapters\.model: .*edges is of class ControlNetModel.* T2IAdapter"):
        adapted_pipeline(different([whole]), config_of(given))
    with pytest.raises(ValueError, match=r"t2i_adapters are for experts of .*; these are of StableDiffusion3Pipeline"):
        adapted_pipeline(different([tiny_sd3_pipeline()]), config_of(given))
    with pytest.raises(ValueError, match=r"t2i_adapters: .* take neither controlnets nor image_prompts"):
        config_of(given, controlnets=given)
