"""An ensemble's pipeline with the adapters of a configuration: ControlNets, image prompts, FreeU, guidance."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from diffusemble.adapters.guidance import guidance_interval
from diffusemble.adapters.image_prompts import image_prompt_call, image_prompt_parts, load_image_prompts
from diffusemble.adapters.nets import net_call, net_parts, net_pipeline
from diffusemble.adapters.windows import t2i_windows
from diffusemble.config.adapters import AdapterConfig
from diffusemble.config.generate import GenerateConfig
from diffusemble.ensembles.base import Ensemble
from diffusemble.ensembles.output_level import OutputEnsembleDenoiser


def adapter_parts(ensemble: Ensemble, config: AdapterConfig) -> dict[str, Any]:
    """ControlNets, T2I-adapters, image prompts and their encoder, which pipelines around the same experts can share.

    Raises:
        ValueError: a file is missing or something else than it should be, or the experts' family has no such adapter.
    """
    _refuse_at_output(ensemble, config)
    return {**net_parts(ensemble, config), **image_prompt_parts(ensemble, config)}


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
    cls, changed = net_pipeline(ensemble, parts)
    pipeline = ensemble.pipeline(cls, **parts, **changed)
    load_image_prompts(pipeline, weights, config)
    if config.freeu is not None:
        _needs_unet(ensemble, "freeu")
        pipeline.enable_freeu(**config.freeu.model_dump())
    return pipeline


def adapter_call(pipeline: Any, config: GenerateConfig, count: int = 1) -> dict[str, Any]:
    """What the pipeline is called with for these adapters, to draw ``count`` pictures.

    Raises:
        ValueError: a picture cannot be read, or the pipeline knows no ``guidance_rescale``.
    """
    call: dict[str, Any] = {}
    if config.controlnets or config.t2i_adapters or config.image_prompts:
        height, width = _size(pipeline, config)
        pictures = {**net_call(pipeline, config, count), **image_prompt_call(pipeline, config, (height, width))}
        call = {**pictures, "height": height, "width": width}
    if config.guidance_rescale:
        _check_rescale(pipeline)
        call["guidance_rescale"] = config.guidance_rescale
    return call


@contextmanager
def acting(pipeline: Any, config: AdapterConfig) -> Iterator[None]:
    """Within it, guidance and T2I-adapters act in their own shares of the steps."""
    interval = config.guidance_interval
    guided = nullcontext() if interval is None else guidance_interval(pipeline, *interval)
    with t2i_windows(pipeline, config.t2i_adapters), guided:
        yield


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


def _check_rescale(pipeline: Any) -> None:
    if "guidance_rescale" not in inspect.signature(type(pipeline).__call__).parameters:
        raise ValueError(
            f"guidance_rescale: diffusers' {type(pipeline).__name__} does not know it. Leave it out, or leave out "
            f"what needs this pipeline (controlnets, t2i_adapters)."
        )
    if pipeline.unet.config.time_cond_proj_dim is not None:
        raise ValueError(
            "guidance_rescale changes what guidance makes of two predictions, and the first expert is told the scale "
            "and makes one (latent consistency models). Leave it out."
        )


def _size(pipeline: Any, config: GenerateConfig) -> tuple[int, int]:
    side = getattr(pipeline, "default_sample_size", None) or pipeline.unet.config.sample_size
    own = side * pipeline.vae_scale_factor
    return config.height or own, config.width or own
