"""An ensemble's pipeline with the adapters of a configuration: ControlNets, image prompts, FreeU, guidance."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from diffusers import (
    ControlNetModel,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxPipeline,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from diffusemble.adapters.guidance import guidance_interval
from diffusemble.config.adapters import AdapterConfig, ControlNetConfig, ImagePromptConfig
from diffusemble.config.generate import GenerateConfig
from diffusemble.controls.storage import read_control
from diffusemble.ensembles.base import Ensemble
from diffusemble.ensembles.output_level import OutputEnsembleDenoiser

_CONTROLLED: Mapping[Any, tuple[type, Any]] = {
    StableDiffusionPipeline: (StableDiffusionControlNetPipeline, ControlNetModel),
    StableDiffusionXLPipeline: (StableDiffusionXLControlNetPipeline, ControlNetModel),
    StableDiffusion3Pipeline: (StableDiffusion3ControlNetPipeline, SD3ControlNetModel),
    FluxPipeline: (FluxControlNetPipeline, FluxControlNetModel),
}
"""Pipelines and classes of the ControlNets, by the experts' pipeline."""


def adapter_parts(ensemble: Ensemble, config: AdapterConfig) -> dict[str, Any]:
    """ControlNets and image encoder, which pipelines around the same experts can share.

    Raises:
        ValueError: a file is missing or something else than it should be, or the experts' family has no such adapter.
    """
    parts: dict[str, Any] = {}
    _refuse_at_output(ensemble, config)
    if config.controlnets:
        _, kind = _controlled(ensemble)
        nets = [_controlnet(one, kind, ensemble) for one in config.controlnets]
        parts["controlnet"] = nets if len(nets) > 1 else nets[0]
    if config.image_prompts:
        _needs_unet(ensemble, "image_prompts")
        parts.update(_image_encoder(config.image_prompts[0], ensemble))
    return parts


def adapted_pipeline(ensemble: Ensemble, config: AdapterConfig, parts: Mapping[str, Any] | None = None) -> Any:
    """The pipeline around the ensemble that the adapters need, with all of them loaded.

    Args:
        ensemble: what draws.
        config: the adapters.
        parts: what ``adapter_parts`` loaded, if it has been done.

    Raises:
        ValueError: see ``adapter_parts``; or an IP-Adapter's file cannot be read.
    """
    parts = dict(adapter_parts(ensemble, config) if parts is None else parts)
    cls, kind = _controlled(ensemble) if config.controlnets else (None, None)
    if kind is SD3ControlNetModel:
        parts["vae"] = _encoding_surely(ensemble.experts[0].components["vae"])
    pipeline = ensemble.pipeline(cls, **parts)
    if config.image_prompts:
        weights = [_image_prompt(one) for one in config.image_prompts]
        names = ["given"] * len(weights)
        pipeline.load_ip_adapter(weights, subfolder=None, weight_name=names, image_encoder_folder=None)
        pipeline.set_ip_adapter_scale([one.weight for one in config.image_prompts])
    if config.freeu is not None:
        _needs_unet(ensemble, "freeu")
        pipeline.enable_freeu(**config.freeu.model_dump())
    return pipeline


def adapter_call(pipeline: Any, config: GenerateConfig) -> dict[str, Any]:
    """What the pipeline is called with for these adapters.

    Raises:
        ValueError: a picture cannot be read, or the pipeline knows no ``guidance_rescale``.
    """
    call: dict[str, Any] = {}
    if config.controlnets or config.image_prompts:
        call.update(zip(("height", "width"), _size(pipeline, config), strict=True))
    if config.controlnets:
        taken = inspect.signature(type(pipeline).__call__).parameters
        place = "control_image" if "control_image" in taken else "image"
        call.update(_several({place: [_picture(one.image, "controlnets.image") for one in config.controlnets]}))
        call.update(_several({"controlnet_conditioning_scale": [one.weight for one in config.controlnets]}))
        call["control_guidance_start"] = [one.start for one in config.controlnets]
        call["control_guidance_end"] = [one.end for one in config.controlnets]
    if config.image_prompts:
        call["ip_adapter_image"] = [_picture(one.image, "image_prompts.image") for one in config.image_prompts]
    if any(one.mask for one in config.image_prompts):
        masks = [_mask(str(one.mask), *_size(pipeline, config)) for one in config.image_prompts]
        call["cross_attention_kwargs"] = {"ip_adapter_masks": masks}
    if config.guidance_rescale:
        if "guidance_rescale" not in inspect.signature(type(pipeline).__call__).parameters:
            raise ValueError(
                f"guidance_rescale: diffusers' {type(pipeline).__name__} does not know it. Leave it out, or leave out "
                f"what needs this pipeline (controlnets)."
            )
        call["guidance_rescale"] = config.guidance_rescale
    return call


def guided(pipeline: Any, config: AdapterConfig) -> AbstractContextManager[None]:
    """Within it, the pipeline guides in the steps of ``guidance_interval``."""
    interval = config.guidance_interval
    return nullcontext() if interval is None else guidance_interval(pipeline, *interval)


# -- parts of the above ------------------------------------------------------------------------------------------------


def _refuse_at_output(ensemble: Ensemble, config: AdapterConfig) -> None:
    for key in ("controlnets", "image_prompts"):
        if getattr(config, key) and isinstance(ensemble, OutputEnsembleDenoiser):
            raise ValueError(
                f"{key} are made for one architecture, and experts that meet at the output need not share one. Use "
                f"level: block, or leave {key} out."
            )


def _controlled(ensemble: Ensemble) -> tuple[type, Any]:
    own = ensemble.experts[0].pipeline_class
    if own not in _CONTROLLED:
        raise ValueError(
            f"controlnets are for experts of {', '.join(plain.__name__ for plain in _CONTROLLED)}; these are of "
            f"{'no pipeline' if own is None else own.__name__}. Use ensemble.pipeline(cls, controlnet=...) with the "
            f"pipeline class of your ControlNet."
        )
    return _CONTROLLED[own]


def _needs_unet(ensemble: Ensemble, key: str) -> None:
    for kind in (type(denoiser).__name__ for denoiser in ensemble.denoisers):
        if kind != "UNet2DConditionModel":
            raise ValueError(f"{key} is for experts with a U-Net (SD 1.x, 2.x, SDXL); one has a {kind}. Leave it out.")


def _controlnet(one: ControlNetConfig, kind: Any, ensemble: Ensemble) -> Any:
    try:
        found = kind.load_config(one.model).get("_class_name", kind.__name__)
        fits = found == kind.__name__
        net = kind.from_pretrained(one.model, use_safetensors=True, torch_dtype=ensemble.dtype) if fits else None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"controlnets.model: {one.model} holds no ControlNet that can be opened ({_first_line(error)}). Give a "
            f"folder or hub id with config.json and .safetensors weights."
        ) from error
    if net is None:
        raise ValueError(
            f"controlnets.model: {one.model} is of class {found}, and ControlNets for these experts are of class "
            f"{kind.__name__}. Use one of those, or ensemble.pipeline(cls, controlnet=...) with a pipeline for it."
        )
    for key in {"cross_attention_dim", "joint_attention_dim"} & set(net.config):
        if net.config[key] != ensemble.config[key]:
            raise ValueError(
                f"controlnets.model: {one.model} reads text of width {net.config[key]}, and the experts' is "
                f"{ensemble.config[key]} wide. Use a ControlNet made for their family."
            )
    return net.to(ensemble.device)


def _encoding_surely(vae: Any) -> Any:
    """``vae``, whose codes hold no noise: SD3's ControlNet pipeline draws that of its picture without a generator."""
    twin = copy.copy(vae)
    twin.encode = lambda picture: SimpleNamespace(
        latent_dist=SimpleNamespace(sample=vae.encode(picture).latent_dist.mode)
    )
    return twin


def _image_encoder(one: ImagePromptConfig, ensemble: Ensemble) -> dict[str, Any]:
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    where = one.encoder or str(Path(one.weights).parent / "image_encoder")
    try:
        encoder = CLIPVisionModelWithProjection.from_pretrained(where, use_safetensors=True, dtype=ensemble.dtype)
    except Exception as error:  # a folder of another kind fails in many ways
        raise ValueError(
            f"image_prompts: {where} holds no image encoder that can be opened ({_first_line(error)}). Set "
            f"image_prompts.encoder to the folder or hub id of the CLIP vision model that the adapter was trained with."
        ) from error
    side = encoder.config.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return {"image_encoder": encoder.to(ensemble.device), "feature_extractor": processor}


def _image_prompt(one: ImagePromptConfig) -> dict[str, dict[str, Tensor]]:
    tensors, _ = read_control(one.weights)
    found: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        if kind in found:
            found[kind][name] = tensor
    if not all(found.values()):
        raise ValueError(
            f"image_prompts.weights: {one.weights} is no IP-Adapter: it has no tensors called image_proj.* and "
            f"ip_adapter.*. Give a file such as ip-adapter_sd15.safetensors."
        )
    return found


def _picture(file: str, key: str) -> Image.Image:
    try:
        return Image.open(file).convert("RGB")
    except (FileNotFoundError, UnidentifiedImageError, IsADirectoryError) as error:
        what = "there is no file" if isinstance(error, FileNotFoundError) else "this is no picture:"
        raise ValueError(f"{key}: {what} {file}. Give the path of a picture.") from error


def _mask(file: str, height: int, width: int) -> Tensor:
    mask: Tensor = IPAdapterMaskProcessor().preprocess([_picture(file, "image_prompts.mask")], height, width)
    return mask.reshape(1, 1, height, width)


def _size(pipeline: Any, config: GenerateConfig) -> tuple[int, int]:
    side = getattr(pipeline, "default_sample_size", None) or pipeline.unet.config.sample_size
    own = side * pipeline.vae_scale_factor
    return config.height or own, config.width or own


def _several(call: dict[str, Sequence[Any]]) -> dict[str, Any]:
    """Pipelines take the values of one ControlNet bare, and those of several as a list."""
    return {name: values if len(values) > 1 else values[0] for name, values in call.items()}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["unreadable"])[0][:120]
