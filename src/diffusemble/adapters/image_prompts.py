"""IP-Adapters of a configuration: their weights, their image encoder, and the pictures to take after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image
from torch import Tensor

from diffusemble.adapters.files import ENCODER, check_weights, encoder_place, first_line
from diffusemble.config.adapters import AdapterConfig, ImagePromptConfig
from diffusemble.controls.storage import read_control
from diffusemble.ensembles.base import Ensemble
from diffusemble.pictures.files import read_picture

Weights = dict[str, dict[str, Tensor]]

_READERS = {"UNet2DConditionModel": "cross_attention_dim", "FluxTransformer2DModel": "joint_attention_dim"}
"""Denoisers that diffusers knows IP-Adapters of this kind for, and where they say how wide what they read is."""

_FLUX_NAMES = (
    ("ip_adapter_proj_model.", "image_proj."),
    ("double_blocks.", "ip_adapter."),
    ("processor.ip_adapter_double_stream_k_proj", "to_k_ip"),
    ("processor.ip_adapter_double_stream_v_proj", "to_v_ip"),
)
"""Names in published files for FLUX, and what diffusers calls the same."""


def image_prompt_parts(ensemble: Ensemble, config: AdapterConfig) -> dict[str, Any]:
    """The adapters' weights (``image_prompts``), and the parts of a pipeline that encode pictures for them.

    Raises:
        ValueError: a file is something else than it should be, or made for another family or image encoder; or the
            experts' family has no such adapters or no masks.
    """
    if not config.image_prompts:
        return {}
    for kind in (type(denoiser).__name__ for denoiser in ensemble.denoisers):
        if kind not in _READERS:
            raise ValueError(
                f"image_prompts are for experts with a U-Net (SD 1.x, 2.x, SDXL) and for FLUX; one has a {kind}. Leave "
                f"them out."
            )
    if any(one.mask for one in config.image_prompts) and not _has_unet(ensemble):
        raise ValueError("image_prompts.mask is for experts with a U-Net: FLUX reads no masks. Leave 'mask' out.")
    weights = [_read(one, ensemble) for one in config.image_prompts]
    encoding = _image_encoder(config.image_prompts[0], ensemble)
    for one, own in zip(config.image_prompts, weights, strict=True):
        _check_encoder(one, own["image_proj"], encoding["image_encoder"].config)
    return {"image_prompts": weights, **encoding}


def load_image_prompts(pipeline: Any, weights: list[Weights], config: AdapterConfig) -> None:
    """Give the adapters to every expert of the pipeline."""
    if not weights:
        return
    none = "image_encoder_folder" if hasattr(pipeline, "unet") else "image_encoder_pretrained_model_name_or_path"
    pipeline.load_ip_adapter(weights, subfolder=None, weight_name=["given"] * len(weights), **{none: None})
    scales = [one.weight for one in config.image_prompts]
    pipeline.set_ip_adapter_scale(scales if len(scales) > 1 else scales[0])


def image_prompt_call(pipeline: Any, config: AdapterConfig, size: tuple[int, int]) -> dict[str, Any]:
    """What the pipeline is called with for them, to draw pictures of ``size`` (height, width).

    Raises:
        ValueError: a picture cannot be read.
    """
    if not config.image_prompts:
        return {}
    pictures = [read_picture(one.image, "image_prompts.image") for one in config.image_prompts]
    if not hasattr(pipeline, "unet"):
        # What a second call without the prompt sees. Left to itself, FLUX's ControlNet pipeline makes one for all.
        return {"ip_adapter_image": pictures, "negative_ip_adapter_image": [Image.new("RGB", size)] * len(pictures)}
    masks = [_mask(one.mask, *size) for one in config.image_prompts if one.mask]
    return {"ip_adapter_image": pictures, **({"cross_attention_kwargs": {"ip_adapter_masks": masks}} if masks else {})}


# -- parts of the above ------------------------------------------------------------------------------------------------


def _has_unet(ensemble: Ensemble) -> bool:
    return type(ensemble.denoisers[0]).__name__ == "UNet2DConditionModel"


def _read(one: ImagePromptConfig, ensemble: Ensemble) -> Weights:
    check_weights(one)
    tensors, _ = read_control(one.weights)
    found: Weights = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in tensors.items():
        for theirs, ours in _FLUX_NAMES:
            key = key.replace(theirs, ours)
        kind, _, name = key.partition(".")
        if kind in found:
            found[kind][name] = tensor
    if not all(found.values()):
        raise ValueError(
            f"image_prompts.weights: {one.weights} is no IP-Adapter: it has no tensors called image_proj.* and "
            f"ip_adapter.*. Give a file such as ip-adapter_sd15.safetensors."
        )
    _check_family(one, found["ip_adapter"], ensemble)
    return found


def _check_family(one: ImagePromptConfig, layers: Mapping[str, Tensor], ensemble: Ensemble) -> None:
    first: Any = ensemble.denoisers[0]
    own = [name for name in first.attn_processors if "attn1." not in name and not name.startswith("single_")]
    needed = (len(own), first.config[_READERS[type(first).__name__]])
    keys = [weight for name, weight in layers.items() if name.endswith("to_k_ip.weight")]
    came = (len(keys), keys[0].shape[1] if keys else 0)
    if came != needed:
        raise ValueError(
            f"image_prompts.weights: {one.weights} is for {came[0]} attentions that read a width of {came[1]}, and "
            f"these experts have {needed[0]}, which read {needed[1]}. Use an IP-Adapter made for their family."
        )


def _check_encoder(one: ImagePromptConfig, projection: Mapping[str, Tensor], encoder: Any) -> None:
    for name, made in (("proj.weight", encoder.projection_dim), ("proj_in.weight", encoder.hidden_size)):
        if name in projection and projection[name].shape[1] != made:
            raise ValueError(
                f"image_prompts.encoder: {one.weights} reads codes of width {projection[name].shape[1]}, and those of "
                f"this image encoder are {made} wide. {ENCODER}"
            )


def _image_encoder(one: ImagePromptConfig, ensemble: Ensemble) -> dict[str, Any]:
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    where, revision = encoder_place(one)
    options = {"use_safetensors": True, "dtype": ensemble.dtype, **({"revision": revision} if revision else {})}
    try:
        encoder = CLIPVisionModelWithProjection.from_pretrained(where, **options)
    except Exception as error:  # a folder of another kind fails in many ways
        raise ValueError(
            f"image_prompts: {where} holds no image encoder that can be opened ({first_line(error)}). {ENCODER}"
        ) from error
    side = encoder.config.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return {"image_encoder": encoder.to(ensemble.device), "feature_extractor": processor}


def _mask(file: str, height: int, width: int) -> Tensor:
    mask: Tensor = IPAdapterMaskProcessor().preprocess([read_picture(file, "image_prompts.mask")], height, width)
    return mask.reshape(1, 1, height, width)
