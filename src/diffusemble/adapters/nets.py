"""Nets that read a picture beside the experts and steer them all: ControlNets and T2I-adapters."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from diffusers import (
    ControlNetModel,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxPipeline,
    MultiAdapter,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
)

from diffusemble.adapters.files import first_line, read_picture
from diffusemble.config.adapters import AdapterConfig
from diffusemble.ensembles.base import Ensemble

_CONTROLNETS: Mapping[Any, tuple[type, Any]] = {
    StableDiffusionPipeline: (StableDiffusionControlNetPipeline, ControlNetModel),
    StableDiffusionXLPipeline: (StableDiffusionXLControlNetPipeline, ControlNetModel),
    StableDiffusion3Pipeline: (StableDiffusion3ControlNetPipeline, SD3ControlNetModel),
    FluxPipeline: (FluxControlNetPipeline, FluxControlNetModel),
}
"""Pipeline with such nets, and class of a net, by the experts' pipeline."""

_T2I_ADAPTERS: Mapping[Any, tuple[type, Any]] = {
    StableDiffusionPipeline: (StableDiffusionAdapterPipeline, T2IAdapter),
    StableDiffusionXLPipeline: (StableDiffusionXLAdapterPipeline, T2IAdapter),
}


def net_parts(ensemble: Ensemble, config: AdapterConfig) -> dict[str, Any]:
    """The opened nets, as the part of a pipeline that they are.

    Raises:
        ValueError: a folder holds something else than it should, or the experts' family has no such nets.
    """
    if config.controlnets:
        nets = [_open("controlnets", one.model, ensemble) for one in config.controlnets]
        return {"controlnet": nets if len(nets) > 1 else nets[0]}
    if config.t2i_adapters:
        nets = [_open("t2i_adapters", one.model, ensemble) for one in config.t2i_adapters]
        return {"adapter": MultiAdapter(nets) if len(nets) > 1 else nets[0]}
    return {}


def net_pipeline(ensemble: Ensemble, config: AdapterConfig) -> tuple[type | None, dict[str, Any]]:
    """The pipeline class that the nets need, None without nets, and parts that it needs changed."""
    if config.t2i_adapters:
        return _kind("t2i_adapters", ensemble)[0], {}
    if not config.controlnets:
        return None, {}
    cls, net = _kind("controlnets", ensemble)
    return cls, {"vae": _encoding_surely(ensemble.experts[0].components["vae"])} if net is SD3ControlNetModel else {}


def net_call(pipeline: Any, config: AdapterConfig, count: int) -> dict[str, Any]:
    """What the pipeline is called with for these nets, to draw ``count`` pictures.

    Raises:
        ValueError: a picture cannot be read.
    """
    if config.t2i_adapters:
        # Unlike those of ControlNets, these pipelines want the picture once for each that they draw.
        each = [[read_picture(one.image, "t2i_adapters.image")] * count for one in config.t2i_adapters]
        return _several(image=each, adapter_conditioning_scale=[one.weight for one in config.t2i_adapters])
    if not config.controlnets:
        return {}
    hints = [read_picture(one.image, "controlnets.image") for one in config.controlnets]
    taken = inspect.signature(type(pipeline).__call__).parameters
    return {
        **_several(**{"control_image" if "control_image" in taken else "image": hints}),
        **_several(controlnet_conditioning_scale=[one.weight for one in config.controlnets]),
        "control_guidance_start": [one.start for one in config.controlnets],
        "control_guidance_end": [one.end for one in config.controlnets],
    }


# -- parts of the above ------------------------------------------------------------------------------------------------


def _kind(key: str, ensemble: Ensemble) -> tuple[type, Any]:
    kinds = _CONTROLNETS if key == "controlnets" else _T2I_ADAPTERS
    own = ensemble.experts[0].pipeline_class
    if own not in kinds:
        part = "controlnet" if key == "controlnets" else "adapter"
        raise ValueError(
            f"{key} are for experts of {', '.join(plain.__name__ for plain in kinds)}; these are of "
            f"{'no pipeline' if own is None else own.__name__}. Use ensemble.pipeline(cls, {part}=...) with the "
            f"pipeline class of your {part}."
        )
    return kinds[own]


def _open(key: str, model: str, ensemble: Ensemble) -> Any:
    kind = _kind(key, ensemble)[1]
    try:
        found = kind.load_config(model).get("_class_name", kind.__name__)
        fits = found == kind.__name__
        net = kind.from_pretrained(model, use_safetensors=True, torch_dtype=ensemble.dtype) if fits else None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{key}.model: {model} holds no {kind.__name__} that can be opened ({first_line(error)}). Give a folder or "
            f"hub id with config.json and .safetensors weights."
        ) from error
    if net is None:
        raise ValueError(
            f"{key}.model: {model} is of class {found}, and {key} for these experts are of class {kind.__name__}. Use "
            f"one of those, or ensemble.pipeline(cls, ...) with a pipeline for it."
        )
    for width in {"cross_attention_dim", "joint_attention_dim"} & set(net.config):
        if net.config[width] != ensemble.config[width]:
            raise ValueError(
                f"{key}.model: {model} reads text of width {net.config[width]}, and the experts' is "
                f"{ensemble.config[width]} wide. Use one made for their family."
            )
    return net.to(ensemble.device)


def _encoding_surely(vae: Any) -> Any:
    """``vae``, whose codes hold no noise: SD3's ControlNet pipeline draws that of its picture without a generator."""
    twin = copy.copy(vae)
    twin.encode = lambda picture: SimpleNamespace(
        latent_dist=SimpleNamespace(sample=vae.encode(picture).latent_dist.mode)
    )
    return twin


def _several(**call: list[Any]) -> dict[str, Any]:
    """Pipelines take the values of one net bare, and those of several as a list."""
    return {name: values if len(values) > 1 else values[0] for name, values in call.items()}
