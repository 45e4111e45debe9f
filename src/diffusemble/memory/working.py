"""Working memory of a drawing: how much there is beside the weights, counted on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from diffusemble.aggregators.storage import create, name_of
from diffusemble.ensemble import EnsembleDenoiser
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
        twin = _twin(ensemble)
        given = arguments(twin, latents, batch * (2 if guided else 1))
        denoise = peak_bytes(lambda: twin(**given))
        vae = vae_of(ensemble)
        decode = (0, 0, 0) if vae is None else _decoding(vae, latents, batch)
    whole, pictures, tiles = (int(MARGIN * size) for size in decode)
    return Working(_encoding(ensemble, batch), int(MARGIN * denoise), (whole, pictures, tiles))


def arguments(ensemble: EnsembleDenoiser, latents: tuple[int, int], batch: int) -> dict[str, Any]:
    """Arguments of one pass of ``ensemble``, all zeros, packed for its experts; on torch's default device.

    Raises:
        ValueError: nothing is known about this class of denoisers.
    """
    kind, n = type(ensemble.denoisers[0]).__name__, len(ensemble.experts)
    if kind not in _ARGUMENTS:
        raise ValueError(
            f"A memory plan needs to know what a {kind} is called with; known are {', '.join(_ARGUMENTS)}. Give the "
            f"plan yourself (make_plan)."
        )
    made: dict[str, Any] = _ARGUMENTS[kind](ensemble.config, n, batch, latents)
    return {name: _typed(value, ensemble.dtype) for name, value in made.items()}


# -- parts of the above ------------------------------------------------------------------------------------------------


def _unet(config: Any, n: int, batch: int, latents: tuple[int, int]) -> dict[str, Any]:
    width = config.cross_attention_dim
    given: dict[str, Any] = {
        "sample": torch.zeros(batch, config.in_channels, *latents),
        "timestep": torch.tensor(1),
        "encoder_hidden_states": torch.zeros(batch, 77 * n, width if isinstance(width, int) else width[0]),
    }
    if config.addition_embed_type == "text_time":
        # Base and refiner have different numbers of ids; only the sum of the widths matters here.
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        given["added_cond_kwargs"] = {
            "text_embeds": torch.zeros(batch, pooled * n),
            "time_ids": torch.zeros(batch, 6),
        }
    return given


def _flux(config: Any, n: int, batch: int, latents: tuple[int, int]) -> dict[str, Any]:
    tokens = LONG_PROMPT * n
    return {
        "hidden_states": torch.zeros(batch, latents[0] // 2 * (latents[1] // 2), config.in_channels),
        "encoder_hidden_states": torch.zeros(batch, tokens, config.joint_attention_dim),
        "pooled_projections": torch.zeros(batch, config.pooled_projection_dim * n),
        "timestep": torch.zeros(batch),
        "guidance": torch.zeros(batch) if config.guidance_embeds else None,
        "img_ids": torch.zeros(latents[0] // 2 * (latents[1] // 2), 3),
        "txt_ids": torch.zeros(tokens, 3),
    }


def _sd3(config: Any, n: int, batch: int, latents: tuple[int, int]) -> dict[str, Any]:
    return {
        "hidden_states": torch.zeros(batch, config.in_channels, *latents),
        "encoder_hidden_states": torch.zeros(batch, (77 + 256) * n, config.joint_attention_dim),
        "pooled_projections": torch.zeros(batch, config.pooled_projection_dim * n),
        "timestep": torch.zeros(batch),
    }


_ARGUMENTS: dict[str, Any] = {
    "UNet2DConditionModel": _unet,
    "FluxTransformer2DModel": _flux,
    "SD3Transformer2DModel": _sd3,
}


def _typed(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {name: _typed(one, dtype) for name, one in value.items()}
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _encoding(ensemble: EnsembleDenoiser, batch: int) -> int:
    sizes = [0]
    for encoder in encoders_of(ensemble):
        config: Any = getattr(encoder, "config", None)
        width, tokens = getattr(config, "hidden_size", 0), getattr(config, "max_position_embeddings", LONG_PROMPT)
        sizes.append(PER_TOKEN * batch * tokens * width * next(encoder.parameters()).element_size())
    return max(sizes)


def _twin(ensemble: EnsembleDenoiser) -> EnsembleDenoiser:
    first, own = ensemble.denoisers[0], ensemble.aggregator
    denoiser = nn.Module.to(type(first).from_config(first.config), ensemble.dtype)
    aggregator = create(name_of(own), own.sizes, own.options.model_dump()).to(ensemble.dtype)
    return EnsembleDenoiser([denoiser] * len(ensemble.experts), aggregator).eval()


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
