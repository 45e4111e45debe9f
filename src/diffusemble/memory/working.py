"""Working memory of a drawing: how much there is beside the weights, counted on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffusemble.aggregators.base import Combiner
from diffusemble.aggregators.storage import create, name_of
from diffusemble.blocks.base import Call
from diffusemble.ensemble import EnsembleDenoiser, build_aggregator
from diffusemble.memory.live import peak_bytes
from diffusemble.memory.measure import encoders_of, vae_of
from diffusemble.memory.plan import Working
from diffusemble.memory.slices import tile

PER_TOKEN = 32
"""Numbers that a text encoder holds at once for each number of a token's embedding: a layer's widened middle, queries,
keys, values, and every layer's output, which pipelines ask for."""

LONG_PROMPT = 512
"""Tokens of T5, which has no length of its own."""

MARGIN = 1.25
"""On what is counted: an allocator rounds up and leaves gaps, and kernels want room of their own. A guess, to be
replaced by what an accelerator shows."""


def measure_working(ensemble: EnsembleDenoiser, latents: tuple[int, int], batch: int, guided: bool) -> Working:
    """Working memory of drawing ``batch`` pictures at a time with latents of this height and width.

    Args:
        ensemble: what draws; it is not run, a twin without numbers is.
        latents: height and width.
        batch: pictures at a time.
        guided: whether both halves of guidance run in one batch.
    """
    with torch.device("meta"):
        denoise = _denoising(ensemble, latents, batch * (2 if guided else 1))
        vae = vae_of(ensemble)
        decode = (0, 0, 0) if vae is None else _decoding(vae, latents, batch)
    whole, pictures, tiles = (int(MARGIN * size) for size in decode)
    return Working(_encoding(ensemble, batch), int(MARGIN * denoise), (whole, pictures, tiles))


def example(denoiser: Any, latents: tuple[int, int], batch: int) -> Call:
    """A call of one denoiser of type and device of its weights, all zeros, with a prompt of usual length.

    Raises:
        ValueError: nothing is known about this class of denoisers.
    """
    kind = type(denoiser).__name__
    if kind not in _INPUTS:
        raise ValueError(
            f"A memory plan needs to know what a {kind} is called with; known are {', '.join(_INPUTS)}. Give the plan "
            f"yourself (make_plan)."
        )
    like = next(denoiser.parameters())
    call: Call = _INPUTS[kind](denoiser.config, batch, latents, like.new_zeros)
    return call


# -- parts of the above ------------------------------------------------------------------------------------------------


def _unet(config: Any, batch: int, latents: tuple[int, int], zeros: Callable[..., Tensor]) -> Call:
    width = config.cross_attention_dim
    inputs: dict[str, Any] = {"encoder_hidden_states": zeros(batch, 77, width if isinstance(width, int) else width[0])}
    if config.addition_embed_type == "text_time":
        # Base and refiner have different numbers of ids; only the sum of the widths matters here.
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": zeros(batch, pooled), "time_ids": zeros(batch, 6)}
    return Call(zeros(batch, config.in_channels, *latents), zeros(()), inputs)


def _flux(config: Any, batch: int, latents: tuple[int, int], zeros: Callable[..., Tensor]) -> Call:
    height, width = latents[0] // 2, latents[1] // 2
    inputs = {
        "encoder_hidden_states": zeros(batch, LONG_PROMPT, config.joint_attention_dim),
        "pooled_projections": zeros(batch, config.pooled_projection_dim),
        "img_ids": zeros(height * width, 3),
        "txt_ids": zeros(LONG_PROMPT, 3),
    }
    if config.guidance_embeds:
        inputs["guidance"] = zeros(batch)
    return Call(zeros(batch, config.in_channels, height, width), zeros(batch), inputs)


def _sd3(config: Any, batch: int, latents: tuple[int, int], zeros: Callable[..., Tensor]) -> Call:
    inputs = {
        "encoder_hidden_states": zeros(batch, 77 + 256, config.joint_attention_dim),
        "pooled_projections": zeros(batch, config.pooled_projection_dim),
    }
    return Call(zeros(batch, config.in_channels, *latents), zeros(batch), inputs)


_INPUTS: Mapping[str, Any] = {
    "UNet2DConditionModel": _unet,
    "FluxTransformer2DModel": _flux,
    "SD3Transformer2DModel": _sd3,
}


def _encoding(ensemble: EnsembleDenoiser, batch: int) -> int:
    sizes = [0]
    for encoder in encoders_of(ensemble):
        config: Any = getattr(encoder, "config", None)
        width, tokens = getattr(config, "hidden_size", 0), getattr(config, "max_position_embeddings", LONG_PROMPT)
        sizes.append(PER_TOKEN * batch * tokens * width * next(encoder.parameters()).element_size())
    return max(sizes)


def _denoising(ensemble: EnsembleDenoiser, latents: tuple[int, int], batch: int) -> int:
    first, own, n = ensemble.denoisers[0], ensemble.aggregator, len(ensemble.experts)
    denoisers = [nn.Module.to(type(first).from_config(first.config), ensemble.dtype)] * n  # the class's own `to` warns
    call = example(denoisers[0], latents, batch)

    def measured(aggregator: Combiner) -> int:
        twin = EnsembleDenoiser(denoisers, aggregator.to(ensemble.dtype)).eval()
        # Not through `forward`: where a pipeline packs a grid, its numbers would have to be read.
        return peak_bytes(lambda: twin._predict(call, [call.inputs] * n))

    try:
        return measured(create(name_of(own), own.sizes, own.options.model_dump()))
    except (NotImplementedError, RuntimeError):
        # What chooses by the numbers cannot run without them; taking everybody needs no less.
        return measured(build_aggregator("mean", denoisers))


def _decoding(vae: nn.Module, latents: tuple[int, int], batch: int) -> tuple[int, int, int]:
    config: Any = vae.config
    dtype = next(vae.parameters()).dtype
    if dtype.itemsize == 2 and getattr(config, "force_upcast", False):
        dtype = torch.float32
    kind: Any = type(vae)
    twin: Any = nn.Module.to(kind.from_config(config), dtype).eval()  # the class's own `to` warns

    def measured(pictures: int) -> int:
        return peak_bytes(lambda: twin.decode(torch.zeros(pictures, config.latent_channels, *latents, dtype=dtype)))

    whole, one = measured(batch), measured(1)
    side = 2 ** (len(config.block_out_channels) - 1)
    results = batch * 3 * latents[0] * latents[1] * side**2 * dtype.itemsize
    if not hasattr(twin, "enable_tiling"):
        return whole, one + results, whole
    tile(twin)
    return whole, min(whole, one + results), min(whole, measured(1) + results)
