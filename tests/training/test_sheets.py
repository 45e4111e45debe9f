"""Sheets are drawn as `diffusemble generate` draws."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusemble.training.config import SamplesConfig
from diffusemble.training.sheets import draw_sheet
from tiny_dit import tiny_flux, tiny_flux_pipeline
from tiny_flux2 import tiny_flux2_pipeline
from tiny_qwen import tiny_qwen_pipeline


@pytest.mark.parametrize("family", ["qwen", "flux", "flux2"])
def test_guidance_by_a_second_pass_shows(tmp_path: Path, family: str) -> None:
    """Qwen's and FLUX's pipelines call it true_cfg_scale; FLUX.2's take no prompt without its name."""
    make = {
        "qwen": tiny_qwen_pipeline,
        "flux": lambda: tiny_flux_pipeline(transformer=tiny_flux(guidance_embeds=False)),
        "flux2": tiny_flux2_pipeline,
    }
    for guidance in (1, 8):
        samples = SamplesConfig(prompts=("one",), steps=2, guidance=guidance)
        draw_sheet(make[family](), samples, 16, tmp_path / f"{guidance}.png")
    assert (tmp_path / "1.png").read_bytes() != (tmp_path / "8.png").read_bytes()
