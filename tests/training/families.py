"""Two tiny real experts of every family that can be trained; also a script that trains them in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from diffusemble.experts.expert import Expert
from diffusemble.experts.layouts.flux import chroma, flux
from diffusemble.experts.layouts.sd3 import sd3
from diffusemble.training.config import TrainConfig
from diffusemble.training.train import train
from ldm import REFINER, SD2, SDXL, save_ldm
from original import original
from tiny import as_expert, tiny_pipeline, tiny_refiner, tiny_scheduler, tiny_sdxl_pipeline, tiny_unet
from tiny_dit import tiny_chroma_pipeline, tiny_flux_pipeline, tiny_sd3_pipeline
from tiny_qwen import tiny_qwen_pipeline
from training.small import UNET

PIPELINES: Mapping[str, Callable[[int], Any]] = {
    "sd1": lambda seed: tiny_pipeline(seed, unet=tiny_unet(seed, **UNET)),
    "sd2": lambda seed: tiny_pipeline(
        seed,
        unet=tiny_unet(seed, **UNET, use_linear_projection=True),
        scheduler=tiny_scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    ),
    "sdxl": tiny_sdxl_pipeline,
    "refiner": tiny_refiner,
    "flux": tiny_flux_pipeline,
    "chroma": tiny_chroma_pipeline,
    "qwen": tiny_qwen_pipeline,
    "sd3": tiny_sd3_pipeline,
    "sd3-without-t5": lambda seed: tiny_sd3_pipeline(seed, text_encoder_3=None, tokenizer_3=None),
}


FILES: Mapping[str, Callable[[Any, Path], object]] = {
    "sd1": save_ldm,
    "sd2": lambda pipeline, file: save_ldm(pipeline, file, SD2),
    "sdxl": lambda pipeline, file: save_ldm(pipeline, file, SDXL),
    "refiner": lambda pipeline, file: save_ldm(pipeline, file, REFINER),
    "flux": lambda pipeline, file: save_file(original(pipeline.transformer, flux), file),
    "chroma": lambda pipeline, file: save_file(original(pipeline.transformer, chroma), file),
    "qwen": lambda pipeline, file: save_file(pipeline.transformer.state_dict(), file),  # whose code is diffusers'
    "sd3": lambda pipeline, file: save_file(original(pipeline.transformer, sd3, "model.diffusion_model."), file),
}


def pipelines_of(family: str) -> tuple[Any, Any]:
    """Two pipelines; the second one exaggerates, so that there is something to learn in a few steps."""
    one, two = (PIPELINES[family](seed) for seed in range(2))
    last = two.unet.conv_out if hasattr(two, "unet") else two.transformer.proj_out
    with torch.no_grad():
        last.weight.mul_(4)
    return one, two


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
