"""What an ensemble is made of and what it costs, without running it: everything is counted on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffusemble.aggregators.storage import create, name_of
from diffusemble.ensemble import EnsembleDenoiser
from diffusemble.experts.expert import Expert
from diffusemble.experts.text import pack_text

TEXT_TOKENS = 77  # Stable Diffusion's prompt length, for experts that come without a tokenizer


@dataclass(frozen=True)
class ExpertDescription:
    """One expert: parameters of its denoiser, and of its text encoders together."""

    name: str
    source: str | None
    kind: str
    parameters: int
    text_parameters: int


@dataclass(frozen=True)
class Point:
    """One aggregation point: channels and grid ``(h, w)`` of its feature, and whether the features are aggregated."""

    name: str
    channels: int
    grid: tuple[int, int]
    aggregated: bool


@dataclass(frozen=True)
class Description:
    """An ensemble in numbers.

    Attributes:
        experts: in the order of their maps.
        aggregator: its name and options.
        aggregator_parameters: what a training learns.
        latents: channels, height and width of the latents that the costs are for.
        points: in running order.
        expert_flops: operations of one forward pass of one expert, two per multiplication with addition, attention
            included; batch 1, so that guidance doubles it.
        ensemble_flops: the same for the ensemble.
    """

    experts: tuple[ExpertDescription, ...]
    aggregator: str
    aggregator_parameters: int
    latents: tuple[int, int, int]
    points: tuple[Point, ...]
    expert_flops: int
    ensemble_flops: int

    @property
    def ratio(self) -> float:
        """Cost of a step of the ensemble over that of one expert."""
        return self.ensemble_flops / self.expert_flops


def describe(ensemble: EnsembleDenoiser, latent_size: tuple[int, int] | None = None) -> Description:
    """Count sizes, parameters and cost of an ensemble.

    Args:
        ensemble: what to describe; it is not run.
        latent_size: height and width of the latents; the experts' own size by default.
    """
    own = ensemble.config.sample_size
    height, width = latent_size or ((own, own) if isinstance(own, int) else own)
    with torch.device("meta"):
        twin, inputs = _without_weights(ensemble), _inputs(ensemble, height, width)
        packed = _packed(inputs, len(ensemble.experts))
        cost, one = _operations(twin, packed), _operations(twin.denoisers[0], inputs)
        grids = _grids(twin, packed)
    aggregator = ensemble.aggregator
    options = ", ".join(f"{key} {value}" for key, value in aggregator.options.model_dump().items())
    return Description(
        experts=tuple(_expert(expert) for expert in ensemble.experts),
        aggregator=f"{name_of(aggregator)} ({options})",
        aggregator_parameters=_size(aggregator),
        latents=(ensemble.config.in_channels, height, width),
        points=tuple(
            Point(name, channels, grid, index in aggregator.points)
            for index, (name, channels, grid) in enumerate(
                zip(ensemble.points, aggregator.sizes.channels, grids, strict=True)
            )
        ),
        expert_flops=one,
        ensemble_flops=cost,
    )


def latent_size(ensemble: EnsembleDenoiser, height: int, width: int) -> tuple[int, int]:
    """Height and width of the latents of a picture, in pixels.

    Raises:
        ValueError: the experts are bare denoisers, whose pictures have no size.
    """
    vae = ensemble.experts[0].components.get("vae")
    if vae is None:
        raise ValueError(
            "These experts are bare denoisers, without a VAE that gives pixels a size. Leave the size out."
        )
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return height // factor, width // factor


# -- parts of the above; on the meta device, where tensors have shapes but no numbers ----------------------------------


def _without_weights(ensemble: EnsembleDenoiser) -> EnsembleDenoiser:
    denoisers = [type(denoiser).from_config(denoiser.config).eval() for denoiser in ensemble.denoisers]
    own = ensemble.aggregator
    return EnsembleDenoiser(denoisers, create(name_of(own), own.sizes, own.options.model_dump())).eval()


def _inputs(ensemble: EnsembleDenoiser, height: int, width: int) -> dict[str, Any]:
    config, sizes = ensemble.config, ensemble.aggregator.sizes
    tokenizer = ensemble.experts[0].components.get("tokenizer")
    tokens = tokenizer.model_max_length if tokenizer else TEXT_TOKENS
    inputs: dict[str, Any] = {
        "sample": torch.zeros(1, config.in_channels, height, width),
        "timestep": torch.tensor(1),
        "encoder_hidden_states": torch.zeros(1, tokens, sizes.text),
    }
    if config.addition_embed_type == "text_time":
        # SDXL concatenates a pooled text with embedded numbers; only the sum of their widths matters here.
        pooled = config.projection_class_embeddings_input_dim - config.addition_time_embed_dim
        added = {"text_embeds": torch.zeros(1, pooled), "time_ids": torch.zeros(1, 1)}
        inputs["added_cond_kwargs"] = added
    return inputs


def _packed(inputs: Mapping[str, Any], n: int) -> dict[str, Any]:
    """``inputs`` of one denoiser, its texts packed n times."""
    packed = {**inputs, "encoder_hidden_states": pack_text([inputs["encoder_hidden_states"]] * n)}
    if "added_cond_kwargs" in inputs:
        added = inputs["added_cond_kwargs"]
        packed["added_cond_kwargs"] = {**added, "text_embeds": pack_text([added["text_embeds"]] * n)}
    return packed


@torch.no_grad()
def _operations(model: nn.Module, inputs: Mapping[str, Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops()


@torch.no_grad()
def _grids(twin: EnsembleDenoiser, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Height and width of every point's feature, seen by an aggregator that aggregates them all."""
    grids: list[tuple[int, int]] = []
    probe = EnsembleDenoiser(list(twin.denoisers), "mean")
    probe.aggregator.register_forward_hook(lambda _, args, mixed: grids.append(tuple(mixed.maps.shape[2:])))
    probe(**inputs)
    return grids


def _expert(expert: Expert) -> ExpertDescription:
    text = [part for name, part in expert.components.items() if name.startswith("text_encoder") and part is not None]
    kind = type(expert.denoiser).__name__
    return ExpertDescription(expert.name, expert.source, kind, _size(expert.denoiser), sum(map(_size, text)))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
