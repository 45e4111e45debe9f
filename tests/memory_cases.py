"""Ensembles of every family, what they are called with, and a watch over where their weights are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusemble import EnsembleDenoiser, build_aggregator
from diffusemble.config.memory import MemoryConfig
from diffusemble.ensembles.base import Ensemble
from diffusemble.memory.measure import measure_weights
from diffusemble.memory.networks import networks_of
from diffusemble.memory.place import Placement
from diffusemble.memory.plan import Plan, Working, make_plan
from stock import small_unet
from tiny import WIDTH, randomised, tiny_sdxl_unet
from tiny_dit import tiny_flux, tiny_sd3


def small_sdxl_unet(seed: int = 0) -> nn.Module:
    """As few layers as SDXL's three levels can have."""
    return tiny_sdxl_unet(seed, layers_per_block=1, transformer_layers_per_block=1)


FAMILIES: Mapping[str, Callable[[int], nn.Module]] = {
    "sd": small_unet,
    "sdxl": small_sdxl_unet,
    "flux": tiny_flux,
    "sd3": tiny_sd3,
}
N = 3


def an_ensemble(family: str, name: str = "sabw", n: int = N, **options: Any) -> EnsembleDenoiser:
    """Experts that differ, and an aggregator whose maps differ."""
    denoisers = [FAMILIES[family](seed) for seed in range(n)]
    if name == "sabw":
        options = {"preset": "tiny", **options}
    torch.manual_seed(7)
    aggregator = randomised(build_aggregator(name, denoisers, **options))
    return EnsembleDenoiser(denoisers, aggregator).eval()


def a_call(ensemble: EnsembleDenoiser, batch: int = 2, side: int = 8) -> dict[str, Any]:
    """Random arguments for ``ensemble``; text of 5 tokens for each expert."""
    torch.manual_seed(11)
    n, config = len(ensemble.experts), ensemble.config
    width = config.get("joint_attention_dim") or config.cross_attention_dim
    given: dict[str, Any] = {
        "timestep": torch.full((batch,), 0.5),
        "encoder_hidden_states": torch.randn(batch, 5 * n, width),
    }
    if "pooled_projection_dim" in config:
        given["pooled_projections"] = torch.randn(batch, n * config.pooled_projection_dim)
    if config.get("addition_embed_type") == "text_time":
        pooled = torch.randn(batch, n * WIDTH)
        given["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.randn(batch, 6)}
    if "guidance_embeds" in config:
        places = [(0.0, float(row), float(column)) for row in range(side // 2) for column in range(side // 2)]
        given |= {"img_ids": torch.tensor(places), "txt_ids": torch.zeros(5, 3), "guidance": torch.full((batch,), 3.5)}
        return {**given, "hidden_states": torch.randn(batch, len(places), config.in_channels)}
    sample = "hidden_states" if "pooled_projections" in given else "sample"
    return {**given, sample: torch.randn(batch, config.in_channels, side, side)}


def predict(ensemble: EnsembleDenoiser, call: Mapping[str, Any]) -> Tensor:
    """One pass without gradients."""
    with torch.no_grad():
        result: Tensor = ensemble(**call).sample
    return result


def a_plan(ensemble: Ensemble, pipelines: Sequence[Any] = (), **choice: Any) -> Plan:
    """The plan that ``choice`` describes."""
    config = MemoryConfig(**choice)
    return make_plan(measure_weights(networks_of(ensemble, pipelines), config.storage), Working(), config)


def watch(ensemble: EnsembleDenoiser, placed: Placement) -> list[str]:
    """Names of modules of the denoisers that compute with a weight that is not on the device, as they run."""
    wrong: list[str] = []
    stretches = placed.conveyor
    moving = {id(item.weight) for scene in placed.bundles.values() for item in scene.bundle.items}

    def check(module: nn.Module, *_: Any) -> None:
        buffers = [(flat.data_ptr(), flat.data_ptr() + flat.numel()) for flat in stretches.buffers]
        for weight in module.parameters(recurse=False):
            inside = any(first <= weight.data_ptr() < last for first, last in buffers)
            if id(weight) in moving and not inside:
                wrong.append(type(module).__name__)

    for module in ensemble.denoisers.modules():
        if next(module.parameters(recurse=False), None) is not None:  # nobody calls a denoiser as a whole
            module.register_forward_pre_hook(check)
    return wrong
