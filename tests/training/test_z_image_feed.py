"""What training tells Z-Image is what its pipeline tells it, and what it hears is the flow that the sampler follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.training.corpus import encode_corpus
from diffusemble.training.feeds.base import fed_denoiser
from tiny import as_expert
from tiny_z_image import tiny_qwen3, tiny_z_image_pipeline
from training.small import small_config, write_pictures
from unet_inputs import randn


@pytest.mark.parametrize("readers", ["one", "shared", "own"])
def test_one_step_of_the_pipeline_follows_what_the_feed_predicts(tmp_path: Path, readers: str) -> None:
    """From noise (σ = 1) straight to the picture: x = ε - u; also beside a caption of another length."""
    encoders = [tiny_qwen3(0), tiny_qwen3(0 if readers == "shared" else 1)]
    if readers == "shared":
        encoders[1] = encoders[0]
    wholes = [tiny_z_image_pipeline(seed, text_encoder=one) for seed, one in enumerate(encoders)]
    experts = [as_expert(whole, f"expert {number}") for number, whole in enumerate(wholes)]
    ensemble = EnsembleDenoiser(experts[: 1 if readers == "one" else 2])
    write_pictures(tmp_path / "pictures", sides=[(16, 16)])
    config = small_config(tmp_path / "pictures", tmp_path, cache=tmp_path / "cache", text_tokens=100)
    corpus = encode_corpus(config.data, config, ensemble, lambda *_: None)
    pipeline, noise = ensemble.pipeline(), randn(2, 4, 8, 8)
    pipeline.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {"height": 16, "width": 16, "num_inference_steps": 1, "output_type": "latent"}
    drawn = pipeline(["picture 0", ""], guidance_scale=0.0, latents=noise, **settings).images
    inputs = corpus.inputs(torch.tensor([0, 0]), torch.tensor([False, True]))
    with torch.no_grad():
        flow = corpus.feed.predict(fed_denoiser(pipeline), noise, torch.full((2,), 1000.0), inputs)
    assert torch.allclose(noise - flow, drawn, atol=1e-5)
    lengths = inputs["encoder_hidden_states_mask"].sum(dim=1)
    assert lengths[0] - lengths[1] == len("picture 0")
    assert corpus.feed.image_tokens(8, 8) == 16
