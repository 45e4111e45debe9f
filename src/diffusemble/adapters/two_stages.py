"""SDXL's two stages: an ensemble of refiners goes on from the latents of an ensemble of bases."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline

from diffusemble.config.ensemble import RefinerConfig
from diffusemble.ensembles.base import Ensemble
from diffusemble.experts.expert import latent_space

_SHARED = ("prompt", "negative_prompt", "generator", "num_inference_steps", "guidance_scale", "guidance_rescale")


def refiner_pipeline(refiner: Ensemble, base: Any) -> Any:
    """Pipeline of the second stage, with the sampler of the first.

    Args:
        refiner: an ensemble of SDXL refiners, or of SDXL base models.
        base: pipeline of the first stage.

    Raises:
        ValueError: the first stage cannot stop on the way, or the two do not share latents and noise schedule.
    """
    if "denoising_end" not in inspect.signature(type(base).__call__).parameters:
        raise ValueError(
            f"refiner: diffusers' {type(base).__name__} always draws to the end. Two stages are for SDXL experts "
            f"without ControlNets; leave the refiner out, or the ControlNets."
        )
    for expert in refiner.experts:
        denoiser: Any = expert.denoiser
        if denoiser.config.get("addition_embed_type") != "text_time":
            raise ValueError(
                f"refiner: the second stage is drawn by refiners of SDXL or by SDXL models, and {expert.name!r} is "
                f"neither (its denoiser, a {type(denoiser).__name__}, reads no sizes). Give refiners of SDXL."
            )
    pipeline = refiner.pipeline(StableDiffusionXLImg2ImgPipeline)
    mine, theirs = latent_space(pipeline.vae), latent_space(base.vae)
    if mine != theirs:
        raise ValueError(
            f"refiner: its experts' latents are {mine}, and those of the first stage are {theirs}. Use refiners of the "
            f"same latent space."
        )
    sampler, trained_with = type(base.scheduler), pipeline.scheduler.config
    if not torch.equal(sampler.from_config(trained_with).alphas_cumprod, base.scheduler.alphas_cumprod):
        raise ValueError(
            "refiner: its experts were trained with another noise schedule than those of the first stage, so a step "
            "means another amount of noise to them. Use refiners made for these experts."
        )
    how = {"prediction_type": trained_with.prediction_type}
    pipeline.scheduler = sampler.from_config(base.scheduler.config, **how)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def in_two_stages(
    base: Any, refiner: Any, call: Mapping[str, Any], settings: RefinerConfig, told: Callable[..., Any]
) -> Any:
    """Pictures that ``refiner`` finished.

    Args:
        base: pipeline of the first stage.
        refiner: what ``refiner_pipeline`` made.
        call: arguments for the first stage; the second gets those that it shares.
        settings: when it goes on, and its scores.
        told: called after every step of the second stage, as a pipeline's ``callback_on_step_end``.
    """
    latents = base(**call, denoising_end=settings.start, output_type="latent").images
    shared = {name: call[name] for name in _SHARED if name in call}
    return refiner(
        **shared,
        image=latents,
        denoising_start=settings.start,
        aesthetic_score=settings.aesthetic_score,
        negative_aesthetic_score=settings.negative_aesthetic_score,
        callback_on_step_end=_going_on(told, call["num_inference_steps"]),
    ).images


def _going_on(told: Callable[..., Any], steps: int) -> Callable[..., Any]:
    return lambda pipe, index, time, state: told(pipe, steps - pipe.num_timesteps + index, time, state)
