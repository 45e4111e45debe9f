"""The published AFA release, run once, and this implementation give the same numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from diffusemble import EnsembleDenoiser, load_published, pack_text, record_attention

GOLDEN = Path(__file__).parents[1] / "golden" / "afa"


def test_noise_and_all_maps_of_the_release_are_reproduced():
    experts = [UNet2DConditionModel.from_pretrained(GOLDEN / f"expert_{i}").float() for i in range(2)]
    ensemble = EnsembleDenoiser(experts, load_published(GOLDEN / "official"))
    data = load_file(GOLDEN / "io.safetensors")
    with torch.no_grad(), record_attention(ensemble) as maps:
        noise = ensemble(data["sample"], data["timestep"], pack_text(list(data["encoder_hidden_states"]))).sample
    torch.testing.assert_close(noise, data["noise_pred"], rtol=0, atol=1e-4)
    for point in range(25):
        expected = data[f"attention_map.{point:02}"]
        assert expected.std() > 0.1  # far from uniform
        torch.testing.assert_close(maps[point][0], expected, rtol=0, atol=1e-4)
