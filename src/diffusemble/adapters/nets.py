"""Nets that read a picture beside the experts and steer them all: ControlNets and T2I-adapters."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
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
    StableDiffusionXLControlNetUnionPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
)

from diffusemble.adapters.files import first_line
from diffusemble.config.adapters import AdapterConfig, ControlNetConfig
from diffusemble.ensembles.base import Ensemble
from diffusemble.experts.expert import downsampling
from diffusemble.experts.hub import parse_part
from diffusemble.pictures.files import read_picture

log = logging.getLogger(__name__)

Kinds = Mapping[Any, Mapping[type, type]]
"""By the experts' pipeline: classes of nets, and the pipeline that each needs."""

_CONTROLNETS: Kinds = {
    StableDiffusionPipeline: {ControlNetModel: StableDiffusionControlNetPipeline},
    StableDiffusionXLPipeline: {
        ControlNetModel: StableDiffusionXLControlNetPipeline,
        ControlNetUnionModel: StableDiffusionXLControlNetUnionPipeline,
    },
    StableDiffusion3Pipeline: {SD3ControlNetModel: StableDiffusion3ControlNetPipeline},
    FluxPipeline: {FluxControlNetModel: FluxControlNetPipeline},
}
_T2I_ADAPTERS: Kinds = {
    StableDiffusionPipeline: {T2IAdapter: StableDiffusionAdapterPipeline},
    StableDiffusionXLPipeline: {T2IAdapter: StableDiffusionXLAdapterPipeline},
}

_READERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def net_parts(ensemble: Ensemble, config: AdapterConfig) -> dict[str, Any]:
    """The opened nets, as the part of a pipeline that they are.

    Raises:
        ValueError: a folder holds something else than it should, the experts' family has no such nets, or a ControlNet
            has no such mode.
    """
    if config.controlnets:
        models = [one.model for one in config.controlnets]
        opened = {model: _open("controlnets", model, ensemble) for model in dict.fromkeys(models)}
        nets = [opened[model] for model in models]
        _refuse_mixed(nets)
        for one, net in zip(config.controlnets, nets, strict=True):
            _check_mode(one, net)
        _tell_whose_text(ensemble)
        return {"controlnet": nets if len(nets) > 1 else nets[0]}
    if config.t2i_adapters:
        nets = [_open("t2i_adapters", one.model, ensemble) for one in config.t2i_adapters]
        return {"adapter": MultiAdapter(nets) if len(nets) > 1 else nets[0]}
    return {}


def net_pipeline(ensemble: Ensemble, parts: Mapping[str, Any]) -> tuple[type | None, dict[str, Any]]:
    """The pipeline class that the nets among ``parts`` need, None without nets, and parts that it needs changed."""
    if "adapter" in parts:
        return _kinds("t2i_adapters", ensemble)[T2IAdapter], {}
    if "controlnet" not in parts:
        return None, {}
    net = parts["controlnet"]
    kind = type(net[0] if isinstance(net, list) else net)
    changed = {"vae": _encoding_surely(ensemble.experts[0].components["vae"])} if kind is SD3ControlNetModel else {}
    return _kinds("controlnets", ensemble)[kind], changed


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
    modes = [one.mode for one in config.controlnets]
    return {
        **({} if set(modes) == {None} else _several(control_mode=modes)),
        **_several(**{"control_image" if "control_image" in taken else "image": hints}),
        **_several(controlnet_conditioning_scale=[one.weight for one in config.controlnets]),
        "control_guidance_start": [one.start for one in config.controlnets],
        "control_guidance_end": [one.end for one in config.controlnets],
    }


# -- parts of the above ------------------------------------------------------------------------------------------------


def _kinds(key: str, ensemble: Ensemble) -> Mapping[type, type]:
    table = _CONTROLNETS if key == "controlnets" else _T2I_ADAPTERS
    own = ensemble.experts[0].pipeline_class
    if own not in table:
        part = "controlnet" if key == "controlnets" else "adapter"
        raise ValueError(
            f"{key} are for experts of {', '.join(plain.__name__ for plain in table)}; these are of "
            f"{'no pipeline' if own is None else own.__name__}. Leave them out, or use ensemble.pipeline(cls, "
            f"{part}=...) with the pipeline class of your {part}, if diffusers has one."
        )
    return table[own]


def _refuse_mixed(nets: Sequence[Any]) -> None:
    kinds = {type(net).__name__ for net in nets}
    if len(kinds) > 1:
        raise ValueError(
            f"controlnets: these are of the classes {' and '.join(sorted(kinds))}, and no pipeline takes both. Use "
            f"nets of one class."
        )


def _open(key: str, model: str, ensemble: Ensemble) -> Any:
    kinds: dict[str, Any] = {kind.__name__: kind for kind in _kinds(key, ensemble)}
    names = " or ".join(kinds)
    usual = next(iter(kinds.values()))
    where, revision = parse_part(model, f"{key}.model")
    options = {"use_safetensors": True, "torch_dtype": ensemble.dtype, "revision": revision}
    try:
        found = usual.load_config(where, revision=revision).get("_class_name", usual.__name__)
        kind = kinds.get(found)
        net = kind.from_pretrained(where, **options) if kind else None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{key}.model: {model} holds no {names} that can be opened ({first_line(error)}). Give a folder or hub id "
            f"with config.json and .safetensors weights."
        ) from error
    if net is None:
        raise ValueError(
            f"{key}.model: {model} is of class {found}, and {key} for these experts are of class {names}. Use one of "
            f"those, or ensemble.pipeline(cls, ...) with a pipeline for it."
        )
    _check_made_for(key, model, net, ensemble)
    return net.to(ensemble.device)


def _check_made_for(key: str, model: str, net: Any, ensemble: Ensemble) -> None:
    for width in {"cross_attention_dim", "joint_attention_dim"} & set(net.config):
        if net.config[width] != ensemble.config[width]:
            raise ValueError(
                f"{key}.model: {model} reads text of width {net.config[width]}, and the experts' is "
                f"{ensemble.config[width]} wide. Use one made for their family."
            )
    if isinstance(net, T2IAdapter):
        _check_maps(model, net, ensemble)


def _check_maps(model: str, net: Any, ensemble: Ensemble) -> None:
    """Its first map is for the first level of the experts, which in SDXL is added behind the level's sampler."""
    first: Any = ensemble.denoisers[0]
    factor = downsampling(ensemble.experts[0].components["vae"]) or 1
    scale = factor * (1 if hasattr(first.down_blocks[0], "attentions") else 2)
    levels = list(first.config.block_out_channels)
    mine = list(net.config["channels"])[: len(levels)]
    if (net.downscale_factor, mine) != (scale, levels[: len(mine)]):
        raise ValueError(
            f"t2i_adapters.model: {model} is for features of {mine} channels from 1/{net.downscale_factor} of the "
            f"picture's side on, and those of the experts are {levels} from 1/{scale} on. Use one made for their "
            f"family."
        )


def _check_mode(one: ControlNetConfig, net: Any) -> None:
    """Unions are told which of their kinds of pictures they read; others read one kind."""
    kinds = net.config.get("num_control_type") if isinstance(net, ControlNetUnionModel) else net.config.get("num_mode")
    if kinds is None and one.mode is not None:
        raise ValueError(
            f"controlnets.mode: {one.model} reads pictures of one kind only, so mode {one.mode} would change nothing. "
            f"Leave 'mode' out, or use a union."
        )
    if kinds is not None and (one.mode is None or one.mode >= kinds):
        came = "none was given" if one.mode is None else f"got {one.mode}"
        raise ValueError(
            f"controlnets.mode: {one.model} reads pictures of {kinds} kinds, and 'mode' says which: 0 to {kinds - 1}; "
            f"{came}. Its page says which number is edges, depth, pose, ..."
        )


def _tell_whose_text(ensemble: Ensemble) -> None:
    # Experts that take their encoders from one base share them.
    first, *others = ([one.components.get(name) for name in _READERS] for one in ensemble.experts)
    if any(mine is not theirs for own in others for mine, theirs in zip(own, first, strict=True)):
        log.warning(
            "ControlNets read the prompt with the text encoders of the first expert alone (%s). Name the expert first "
            "that they suit best.",
            ensemble.experts[0].name,
        )


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
