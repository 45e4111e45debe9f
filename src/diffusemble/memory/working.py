"""Working memory of a drawing: how much there is beside the weights, counted on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from diffusemble.aggregators.base import Combiner, Context
from diffusemble.aggregators.storage import create, name_of
from diffusemble.blocks.example import LONG_PROMPT, example
from diffusemble.controls.base import ControlledUNet
from diffusemble.ensembles.block_level import EnsembleDenoiser, build_aggregator
from diffusemble.ensembles.output_level import OutputEnsembleDenoiser
from diffusemble.experts.expert import downsampling
from diffusemble.memory.bundle import bytes_of
from diffusemble.memory.company import Company
from diffusemble.memory.controlled import measure_controlled
from diffusemble.memory.live import peak_bytes
from diffusemble.memory.measure import decoding_type
from diffusemble.memory.networks import Networks
from diffusemble.memory.plan import Working
from diffusemble.memory.slices import tile

PER_TOKEN = 32
"""Numbers that a text encoder holds at once for each number of a token's embedding: a layer's widened middle, queries,
keys, values (8 together), and the outputs of 24 layers, which pipelines ask for; of more layers, more."""

MARGIN = 1.25
"""On what is counted: an allocator rounds up and leaves gaps, and kernels want room of their own. A guess, to be
replaced by what an accelerator shows."""


def measure_working(networks: Networks, latents: tuple[int, int], batch: int, guided: bool, things: int = 0) -> Working:
    """Working memory of drawing ``batch`` pictures at a time with latents of this height and width.

    Args:
        networks: what draws; nothing of it is run, twins without numbers are.
        latents: height and width.
        batch: pictures at a time.
        guided: whether both halves of guidance run in one batch.
        things: in boxes that controls are told of, of every picture.

    Raises:
        ValueError: nothing is known about a class of denoisers or ControlNets.
    """
    ensemble, rows = networks.ensemble, batch * (2 if guided else 1)
    with torch.device("meta"):
        added = [measure_control(control, latents, rows) for control in networks.controls]
        denoise = _drawing(ensemble, latents, batch, rows, things) + sum(residuals for _, residuals in added)
        decodes = [_decoding(vae, decoding_type(ensemble, vae), latents, batch) for vae in networks.vaes]
    denoise = max([denoise, *(peak + sum(residuals for _, residuals in added) for peak, _ in added)])
    whole, pictures, tiles = (int(MARGIN * max(sizes)) for sizes in zip((0, 0, 0), *decodes, strict=True))
    return Working(_encoding(networks.encoders, max(batch, things)), int(MARGIN * denoise), (whole, pictures, tiles))


# -- parts of the above ------------------------------------------------------------------------------------------------


def _encoding(encoders: Iterable[nn.Module], batch: int) -> int:
    sizes = [0]
    for encoder in encoders:
        config: Any = getattr(encoder, "config", None)
        config = config.get_text_config() if hasattr(config, "get_text_config") else config  # Qwen2.5-VL also sees
        # Language models could read books, and pipelines give them no more than T5.
        width, tokens = getattr(config, "hidden_size", 0), getattr(config, "max_position_embeddings", LONG_PROMPT)
        if hasattr(config, "patch_size"):
            tokens = (config.image_size // config.patch_size) ** 2 + 1
        tokens = min(tokens, LONG_PROMPT)
        each = max(PER_TOKEN, 8 + getattr(config, "num_hidden_layers", 0)) * width
        sizes.append(each * batch * tokens * next(encoder.parameters()).element_size())
    return max(sizes)


def _drawing(drawer: nn.Module, latents: tuple[int, int], pictures: int, rows: int, things: int) -> int:
    if isinstance(drawer, Company):
        return max(_drawing(one, latents, pictures, rows, things) for one in drawer.members)
    if isinstance(drawer, ControlledUNet):
        return measure_controlled(drawer, latents, pictures, rows, things)
    if isinstance(drawer, OutputEnsembleDenoiser):
        return _asking(drawer, latents, rows)
    ensemble = drawer if isinstance(drawer, EnsembleDenoiser) else EnsembleDenoiser([drawer])
    return _denoising(ensemble, latents, rows)


def _denoising(ensemble: EnsembleDenoiser, latents: tuple[int, int], batch: int) -> int:
    own, n = ensemble.aggregator, len(ensemble.experts)
    denoisers = [_twin(ensemble.denoisers[0], ensemble.dtype)] * n
    call = example(denoisers[0], latents, batch)

    def measured(aggregator: Combiner) -> int:
        twin = EnsembleDenoiser(denoisers, aggregator.to(ensemble.dtype)).eval()
        # Not through `forward`: where a pipeline packs a grid, its numbers would have to be read.
        return peak_bytes(lambda: twin.predict(call, [call.inputs] * n))

    try:
        return measured(create(name_of(own), own.sizes, own.options.model_dump()))
    except (NotImplementedError, RuntimeError):
        # What chooses by the numbers cannot run without them; taking everybody needs no less.
        return measured(build_aggregator("mean", denoisers))


def _asking(ensemble: OutputEnsembleDenoiser, latents: tuple[int, int], batch: int) -> int:
    """At output level: the expert that needs most, or the aggregator, beside everybody's predictions."""
    peaks = []
    for family in ensemble.families:
        sample = torch.zeros(batch, family.channels, *latents, dtype=ensemble.dtype)
        peaks.append(peak_bytes(partial(family.example, _twin(family.denoiser, ensemble.dtype), sample)))
    own, sizes = ensemble.aggregator, ensemble.sizes
    aggregator = create(name_of(own), sizes, own.options.model_dump()).to(ensemble.dtype).eval()
    predictions = [torch.zeros(batch, sizes.channels[0], *latents, dtype=ensemble.dtype)] * sizes.experts
    context = Context(
        text=predictions[0].new_zeros(batch, LONG_PROMPT, sizes.text),
        time=predictions[0].new_zeros(batch, sizes.time),
        sample=predictions[0],
        timestep=predictions[0].new_zeros(batch),
    )
    peaks.append(peak_bytes(lambda: aggregator(0, predictions, context)))
    return max(peaks) + bytes_of(predictions)


def measure_control(control: Any, latents: tuple[int, int], batch: int) -> tuple[int, int]:
    """Most bytes while a ControlNet computes, and bytes of what it hands on."""
    kind = type(control).__name__
    if kind not in _CONTROLS:
        raise ValueError(
            f"A memory plan knows what ControlNets of the classes {', '.join(_CONTROLS)} need, and this is a {kind}. "
            f"Leave the budget out, or give a plan yourself (make_plan)."
        )
    twin = _twin(control, control.dtype)
    call = example(twin, latents, batch)
    given = {"timestep": call.timestep, "return_dict": False, **call.inputs, **_CONTROLS[kind](twin, call.sample)}
    made: list[Tensor] = []
    peak = peak_bytes(lambda: made.extend(one for one in tree_leaves(twin(**given)) if one is not None))
    return peak, bytes_of(made)


def _hint(control: Any, sample: Tensor) -> dict[str, Tensor]:
    """A U-Net's ControlNet reads a picture."""
    factor = 2 ** (len(control.config.conditioning_embedding_out_channels) - 1)
    height, width = sample.shape[-2:]
    return {"sample": sample, "controlnet_cond": sample.new_zeros(len(sample), 3, factor * height, factor * width)}


def _of_a_kind(control: Any, sample: Tensor) -> dict[str, Any]:
    """A union reads a picture of one of its kinds."""
    kinds = sample.new_zeros(len(sample), control.config.num_control_type)
    given = _hint(control, sample)
    return {**given, "controlnet_cond": [given["controlnet_cond"]], "control_type": kinds, "control_type_idx": [0]}


def _tokens(control: Any, sample: Tensor) -> dict[str, Tensor]:
    """FLUX's reads encoded pictures, both as tokens; a union is told of which kind they are."""
    tokens = sample.flatten(2).mT
    kind = {"controlnet_mode": sample.new_zeros(len(sample), 1, dtype=torch.long)} if control.union else {}
    return {"hidden_states": tokens, "controlnet_cond": tokens, **kind}


def _encoded(control: Any, sample: Tensor) -> dict[str, Tensor]:
    """SD3's reads encoded pictures, with their mask where it asks for one."""
    channels = sample.shape[1] + control.config.extra_conditioning_channels
    return {"hidden_states": sample, "controlnet_cond": sample.new_zeros(len(sample), channels, *sample.shape[-2:])}


_CONTROLS: Mapping[str, Callable[[Any, Tensor], dict[str, Any]]] = {
    "ControlNetModel": _hint,
    "ControlNetUnionModel": _of_a_kind,
    "FluxControlNetModel": _tokens,
    "SD3ControlNetModel": _encoded,
}


def _twin(model: Any, dtype: torch.dtype) -> Any:
    """A model of the same architecture without numbers, where tensors are made without them."""
    config = dict(model.config)
    if config.get("encoder_hid_dim_type") and config["encoder_hid_dim"] is None:
        config["encoder_hid_dim_type"] = None  # image prompts, which were attached later, wrote it there
    return nn.Module.to(type(model).from_config(config), dtype).eval()  # the class's own `to` warns


def _decoding(vae: nn.Module, dtype: torch.dtype, latents: tuple[int, int], batch: int) -> tuple[int, int, int]:
    config: Any = vae.config
    twin = _twin(vae, dtype)
    # Qwen-Image's decodes films: of one picture, here.
    shape = (config.z_dim, 1, *latents) if "z_dim" in config else (config.latent_channels, *latents)

    def measured(pictures: int) -> int:
        return peak_bytes(lambda: twin.decode(torch.zeros(pictures, *shape, dtype=dtype)))

    one = measured(1)
    whole = one if batch == 1 else measured(batch)
    side = downsampling(vae) or 1
    results = batch * 3 * latents[0] * latents[1] * side**2 * dtype.itemsize
    if not hasattr(twin, "tile_latent_min_size"):
        return whole, whole, whole
    tile(twin)
    return whole, min(whole, one + results), min(whole, measured(1) + results)
