"""A tiny model and controls for it, as files, and a scene that they draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from diffusemble import EnsembleDenoiser, build_aggregator, load_experts
from diffusemble.controls import Gligen, Interaction
from diffusemble.controls.image_prompt import ImagePrompt
from diffusemble.controls.migc import Migc
from diffusemble.scene.config import SceneConfig
from gated_cases import opened
from tiny import randomised, tiny_pipeline, tiny_unet

IMAGE = 12  # width of image embeddings


@dataclass(frozen=True)
class Files:
    """Where the tiny models lie."""

    root: Path

    def __getitem__(self, name: str) -> str:
        return str(self.root / name)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A base, another model, a control of every kind, a picture encoder and a reference picture."""
    root = tmp_path_factory.mktemp("scene")
    unet = tiny_unet()
    tiny_pipeline().save_pretrained(root / "base")
    tiny_pipeline(1).save_pretrained(root / "fern")
    opened(Interaction, unet).save_pretrained(root / "interaction.safetensors")
    opened(Gligen, unet).save_pretrained(root / "gligen.safetensors")
    torch.manual_seed(4)
    layers = ("up_blocks.1",)
    randomised(Migc.from_unet(unet, layers, slots=5, hidden=16, heads=4, reduction=4)).save_pretrained(
        root / "migc.safetensors"
    )
    randomised(ImagePrompt.from_unet(unet, IMAGE)).save_pretrained(root / "image-prompt.safetensors")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPVisionConfig(**sizes, projection_dim=IMAGE, image_size=16, patch_size=8)
    CLIPVisionModelWithProjection(config).eval().save_pretrained(root / "encoder")
    CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(root / "encoder")
    experts = load_experts([root / "base", root / "fern"])
    aggregator = build_aggregator("sabw", [expert.denoiser for expert in experts], preset="tiny")
    EnsembleDenoiser(experts, randomised(aggregator)).save_pretrained(root / "ensemble")
    Image.radial_gradient("L").convert("RGB").resize((20, 20)).save(root / "style.png")
    return Files(root)


@pytest.fixture(scope="session")
def told(files: Files) -> Callable[..., dict[str, Any]]:
    """Settings of a scene with everything; keyword arguments replace some."""

    def make(**changes: Any) -> dict[str, Any]:
        kinds = ("interaction", "migc", "image-prompt")
        members = [{"kind": kind, "source": files[f"{kind}.safetensors"]} for kind in kinds]
        members[2]["encoder"] = files["encoder"]
        return {
            "prompt": "cat on box",
            "base": files["base"],
            "instances": [
                {"name": "cat", "box": [0.1, 0.1, 0.5, 0.6], "attribute": "red"},
                {"name": "box", "box": [0.2, 0.5, 0.9, 1.0]},
                {"name": "sun", "box": [0.6, 0.0, 1.0, 0.4]},
            ],
            "relations": [{"subject": "cat", "action": "on", "object": "box"}],
            "reference": files["style.png"],
            "members": members,
            "steps": 3,
            "device": "cpu",
            **changes,
        }

    return make


@pytest.fixture(scope="session")
def scene(told: Callable[..., dict[str, Any]]) -> Callable[..., SceneConfig]:
    """The same as a configuration."""
    return lambda **changes: SceneConfig(**told(**changes))
