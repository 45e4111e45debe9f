"""An ensemble's pipeline with the adapters of a configuration: ControlNets, image prompts, FreeU, guidance."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from diffusers.image_processor import IPAdapterMaskProcessor
from torch import Tensor

from diffusemble.adapters.files import first_line, read_picture
from diffusemble.adapters.guidance import guidance_interval
from diffusemble.adapters.nets import net_call, net_parts, net_pipeline
from diffusemble.config.adapters import AdapterConfig, ImagePromptConfig
from diffusemble.config.generate import GenerateConfig
from diffusemble.controls.storage import read_control
from diffusemble.ensembles.base import Ensemble
from diffusemble.ensembles.output_level import OutputEnsembleDenoiser

_ENCODER = (
    "Set image_prompts.encoder to the folder or hub id of the CLIP vision model that the adapter was trained with."
)


def adapter_parts(ensemble: Ensemble, config: AdapterConfig) -> dict[str, Any]:
    """ControlNets, T2I-adapters, image prompts and their encoder, which pipelines around the same experts can share.

    Raises:
        ValueError: a file is missing or something else than it should be, or the experts' family has no such adapter.
    """
    _refuse_at_output(ensemble, config)
    parts = net_parts(ensemble, config)
    if config.image_prompts:
        _needs_unet(ensemble, "image_prompts")
        parts["image_prompts"] = [_image_prompt(one) for one in config.image_prompts]
        parts.update(_image_encoder(config.image_prompts[0], ensemble))
    return parts


def adapted_pipeline(ensemble: Ensemble, config: AdapterConfig, parts: Mapping[str, Any] | None = None) -> Any:
    """The pipeline around the ensemble that the adapters need, with all of them loaded.

    Args:
        ensemble: what draws.
        config: the adapters.
        parts: what ``adapter_parts`` loaded, if it has been done.

    Raises:
        ValueError: see ``adapter_parts``.
    """
    parts = dict(adapter_parts(ensemble, config) if parts is None else parts)
    weights = parts.pop("image_prompts", [])
    cls, changed = net_pipeline(ensemble, config)
    pipeline = ensemble.pipeline(cls, **parts, **changed)
    if weights:
        names = ["given"] * len(weights)
        pipeline.load_ip_adapter(weights, subfolder=None, weight_name=names, image_encoder_folder=None)
        pipeline.set_ip_adapter_scale([one.weight for one in config.image_prompts])
    if config.freeu is not None:
        _needs_unet(ensemble, "freeu")
        pipeline.enable_freeu(**config.freeu.model_dump())
    return pipeline


def adapter_call(pipeline: Any, config: GenerateConfig, count: int = 1) -> dict[str, Any]:
    """What the pipeline is called with for these adapters, to draw ``count`` pictures.

    Raises:
        ValueError: a picture cannot be read, or the pipeline knows no ``guidance_rescale``.
    """
    call = net_call(pipeline, config, count)
    if call or config.image_prompts:
        call.update(zip(("height", "width"), _size(pipeline, config), strict=True))
    if config.image_prompts:
        call["ip_adapter_image"] = [read_picture(one.image, "image_prompts.image") for one in config.image_prompts]
    if any(one.mask for one in config.image_prompts):
        masks = [_mask(str(one.mask), *_size(pipeline, config)) for one in config.image_prompts]
        call["cross_attention_kwargs"] = {"ip_adapter_masks": masks}
    if config.guidance_rescale:
        if "guidance_rescale" not in inspect.signature(type(pipeline).__call__).parameters:
            raise ValueError(
                f"guidance_rescale: diffusers' {type(pipeline).__name__} does not know it. Leave it out, or leave out "
                f"what needs this pipeline (controlnets, t2i_adapters)."
            )
        call["guidance_rescale"] = config.guidance_rescale
    return call


def guided(pipeline: Any, config: AdapterConfig) -> AbstractContextManager[None]:
    """Within it, the pipeline guides in the steps of ``guidance_interval``."""
    interval = config.guidance_interval
    return nullcontext() if interval is None else guidance_interval(pipeline, *interval)


# -- parts of the above ------------------------------------------------------------------------------------------------


def _refuse_at_output(ensemble: Ensemble, config: AdapterConfig) -> None:
    for key in ("controlnets", "t2i_adapters", "image_prompts"):
        if getattr(config, key) and isinstance(ensemble, OutputEnsembleDenoiser):
            raise ValueError(
                f"{key} are made for one architecture, and experts that meet at the output need not share one. Use "
                f"level: block, or leave {key} out."
            )


def _needs_unet(ensemble: Ensemble, key: str) -> None:
    for kind in (type(denoiser).__name__ for denoiser in ensemble.denoisers):
        if kind != "UNet2DConditionModel":
            raise ValueError(f"{key} is for experts with a U-Net (SD 1.x, 2.x, SDXL); one has a {kind}. Leave it out.")


def _image_encoder(one: ImagePromptConfig, ensemble: Ensemble) -> dict[str, Any]:
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    beside = Path(one.weights).parent / "image_encoder"
    if one.encoder is None and not beside.is_dir():  # the hub would be asked for it
        raise ValueError(
            f"image_prompts: there is no folder {beside}, where the image encoder of {one.weights} is looked for. "
            f"{_ENCODER}"
        )
    where = one.encoder or str(beside)
    try:
        encoder = CLIPVisionModelWithProjection.from_pretrained(where, use_safetensors=True, dtype=ensemble.dtype)
    except Exception as error:  # a folder of another kind fails in many ways
        raise ValueError(
            f"image_prompts: {where} holds no image encoder that can be opened ({first_line(error)}). {_ENCODER}"
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


def _mask(file: str, height: int, width: int) -> Tensor:
    mask: Tensor = IPAdapterMaskProcessor().preprocess([read_picture(file, "image_prompts.mask")], height, width)
    return mask.reshape(1, 1, height, width)


def _size(pipeline: Any, config: GenerateConfig) -> tuple[int, int]:
    side = getattr(pipeline, "default_sample_size", None) or pipeline.unet.config.sample_size
    own = side * pipeline.vae_scale_factor
    return config.height or own, config.width or own
