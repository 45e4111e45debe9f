"""Working memory of a drawing: how much there is beside the weights, counted on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from diffusemble.aggregators.base import Combiner
from diffusemble.aggregators.storage import create, name_of
from diffusemble.blocks.example import LONG_PROMPT, example
from diffusemble.ensembles.block_level import EnsembleDenoiser, build_aggregator
from diffusemble.memory.live import peak_bytes
from diffusemble.memory.measure import decoding_type, encoders_of, vae_of
from diffusemble.memory.plan import Working
from diffusemble.memory.slices import tile

PER_TOKEN = 32
"""Numbers that a text encoder holds at once for each number of a token's embedding: a layer's widened middle, queries,
keys, values, and every layer's output, which pipelines ask for."""

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
        decode = (0, 0, 0) if vae is None else _decoding(vae, decoding_type(ensemble), latents, batch)
    whole, pictures, tiles = (int(MARGIN * size) for size in decode)
    return Working(_encoding(ensemble, batch), int(MARGIN * denoise), (whole, pictures, tiles))


# -- parts of the above ------------------------------------------------------------------------------------------------


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


def _decoding(vae: nn.Module, dtype: torch.dtype, latents: tuple[int, int], batch: int) -> tuple[int, int, int]:
    config: Any = vae.config
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
