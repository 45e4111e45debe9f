"""Real sizes of U-Nets, and how many operations one denoising step takes; counted on the meta device, in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import UNet2DConditionModel
from torch import Tensor

from diffusemble import EnsembleDenoiser, build_aggregator
from diffusemble.aggregators.base import Context
from diffusemble.description import Cost, count_flops

RECIPE = Path(__file__).parents[1] / "recipes" / "zoo" / "recipe.yaml"
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """A U-Net: its configuration, side of its latents, tokens of a prompt, presets of SABW that suit it."""

    config: Mapping[str, Any]
    side: int
    tokens: int
    presets: tuple[str, ...] = ("paper", "lite", "lite-pooled", "small")


def zoo_size() -> Size:
    """The U-Net of the shipped experts, as their recipe has it; 64-pixel images, factor 8."""
    recipe = yaml.safe_load(RECIPE.read_text())
    channels, text = recipe["vae"]["model"]["latent_channels"], recipe["text"]
    config = {"in_channels": channels, "out_channels": channels, "cross_attention_dim": text["model"]["hidden_size"]}
    return Size({**config, **recipe["unet"]["model"]}, side=8, tokens=text["length"], presets=("small", "tiny"))


SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
TINY = {
    "block_out_channels": (16, 16, 32, 32),
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
SIZES = {
    "tiny": Size(TINY, side=16, tokens=7, presets=("tiny",)),
    "zoo": zoo_size(),
    "sd15": Size({"cross_attention_dim": 768}, side=64, tokens=77),
    "sdxl": Size(SDXL, side=128, tokens=77),
}


def random_inputs(size: Size, experts: int, device: str, dtype: torch.dtype, batch: int = 1) -> Inputs:
    """Arguments of one step: latents ``[b c h w]``, a timestep, the experts' texts ``[b n·s d]``."""
    config, where = size.config, {"device": device, "dtype": dtype}
    given: Inputs = {
        "sample": torch.randn(batch, config.get("in_channels", 4), size.side, size.side, **where),
        "timestep": torch.tensor(500, device=device),
        "encoder_hidden_states": torch.randn(batch, experts * size.tokens, config["cross_attention_dim"], **where),
    }
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        given["added_cond_kwargs"] = {
            "text_embeds": torch.randn(batch, experts * pooled, **where),
            "time_ids": torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]] * batch, **where),
        }
    return given


def count_costs(size: Size, experts: int) -> dict[str, Cost]:
    """Cost of every variant for a batch of one, without memory or arithmetic.

    The ensemble's cost is that of its U-Nets and of its aggregator; U-Nets of one shape are counted once.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(**size.config)
        aggregators = {f"SABW {name}": build_aggregator("sabw", [unet] * experts, preset=name) for name in size.presets}
    inputs = random_inputs(size, 1, "meta", torch.float32)
    one = count_flops(lambda: unet(**inputs))
    together = one * experts
    visits = [(point, features * experts, context) for point, features, context in _visits(unet, inputs)]
    costs = {"one U-Net": one, f"{experts} in sequence": together, "ensemble, mean": together}
    for name, aggregator in aggregators.items():
        costs[f"ensemble, {name}"] = together + count_flops(lambda a=aggregator: [a(*visit) for visit in visits])
    return costs


def _visits(unet: UNet2DConditionModel, inputs: Inputs) -> list[tuple[int, list[Tensor], Context]]:
    """What the aggregator of an ensemble of this one U-Net is called with during a step."""
    visits: list[tuple[int, list[Tensor], Context]] = []
    ensemble = EnsembleDenoiser([unet])
    ensemble.aggregator.register_forward_pre_hook(lambda _, args: visits.append(args))
    with torch.no_grad():
        ensemble(**inputs)
    return visits
