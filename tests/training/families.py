"""Two tiny real experts of every family that can be trained; also a script that trains them in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from diffusemble.experts.expert import Expert
from diffusemble.experts.layouts.flux import chroma, flux, flux2
from diffusemble.experts.layouts.sd3 import sd3
from diffusemble.experts.layouts.z_image import z_image
from diffusemble.training.config import TrainConfig
from diffusemble.training.train import train
from ldm import REFINER, SD2, SDXL, save_ldm
from original import original
from tiny import as_expert, small_pipeline, small_unet, tiny_refiner, tiny_scheduler, tiny_sdxl_pipeline
from tiny_dit import tiny_chroma_pipeline, tiny_flux_pipeline, tiny_sd3_pipeline
from tiny_flux2 import tiny_flux2_pipeline
from tiny_qwen import tiny_qwen_pipeline
from tiny_z_image import tiny_z_image_pipeline
from training.small import UNET

PIPELINES: Mapping[str, Callable[[int], Any]] = {
    "sd1": lambda seed: small_pipeline(seed, unet=small_unet(seed, **UNET)),
    "sd2": lambda seed: small_pipeline(
        seed,
        unet=small_unet(seed, **UNET, use_linear_projection=True),
        scheduler=tiny_scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    ),
    "sdxl": tiny_sdxl_pipeline,
    "refiner": tiny_refiner,
    "flux": tiny_flux_pipeline,
    "flux2": tiny_flux2_pipeline,
    "chroma": tiny_chroma_pipeline,
    "qwen": tiny_qwen_pipeline,
    "z-image": tiny_z_image_pipeline,
    "sd3": tiny_sd3_pipeline,
    "sd3-without-t5": lambda seed: tiny_sd3_pipeline(seed, text_encoder_3=None, tokenizer_3=None),
}


FILES: Mapping[str, Callable[[Any, Path], object]] = {
    "sd1": save_ldm,
    "sd2": lambda pipeline, file: save_ldm(pipeline, file, SD2),
    "sdxl": lambda pipeline, file: save_ldm(pipeline, file, SDXL),
    "refiner": lambda pipeline, file: save_ldm(pipeline, file, REFINER),
    "flux": lambda pipeline, file: save_file(original(pipeline.transformer, flux), file),
    "flux2": lambda pipeline, file: save_file(original(pipeline.transformer, flux2), file),
    "chroma": lambda pipeline, file: save_file(original(pipeline.transformer, chroma), file),
    "qwen": lambda pipeline, file: save_file(pipeline.transformer.state_dict(), file),  # whose code is diffusers'
    "z-image": lambda pipeline, file: save_file(original(pipeline.transformer, z_image), file),
    "sd3": lambda pipeline, file: save_file(original(pipeline.transformer, sd3, "model.diffusion_model."), file),
}


def pipelines_of(family: str) -> tuple[Any, Any]:
    """Two pipelines; the second one exaggerates, so that there is something to learn in a few steps."""
    one, two = (PIPELINES[family](seed) for seed in range(2))
    with torch.no_grad():
        last_of(two).weight.mul_(4)
    return one, two


def last_of(pipeline: Any) -> Any:
    """The layer that writes the prediction."""
    if hasattr(pipeline, "unet"):
        return pipeline.unet.conv_out
    own = pipeline.transformer
    return own.proj_out if hasattr(own, "proj_out") else own.all_final_layer["2-1"].linear


def experts_of(family: str) -> tuple[Expert, ...]:
    return tuple(as_expert(pipeline, f"expert {seed}") for seed, pipeline in enumerate(pipelines_of(family)))


def save_experts(family: str, folder: Path) -> tuple[list[str], str]:
    """Both as single files in the layout of the original code, and a folder that has what those lack."""
    folder.mkdir()
    files = [str(folder / f"{name}.safetensors") for name in ("one", "two")]
    for file, pipeline in zip(files, pipelines_of(family), strict=True):
        FILES[family](pipeline, Path(file))
    PIPELINES[family](0).save_pretrained(folder / "base")
    return files, str(folder / "base")


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(TrainConfig.model_validate_json(Path(sys.argv[1]).read_text()), experts_of(sys.argv[2]))
