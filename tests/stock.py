"""Stock pipelines of diffusers and of this library around tiny real models, with one latent space and schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoPipelineForText2Image,
    ControlNetModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionGLIGENPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLPAGPipeline,
    T2IAdapter,
)
from peft import LoraConfig
from torch import Tensor

from diffusemble import EnsembleDenoiser
from tiny import (
    SDXL_UNET,
    SMALL,
    as_expert,
    randomised,
    small_pipeline,
    small_unet,
    tiny_sdxl_pipeline,
    tiny_sdxl_unet,
    tiny_vae,
)
from unet_inputs import IMAGE_WIDTH, load_image_prompts, randn

STEPS = 3
SIZE = {"height": 16, "width": 16}

Stock = tuple[Any, dict[str, Any]]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(seed: int = 0) -> Tensor:
    return torch.rand(1, 3, 16, 16, generator=generator(seed))


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _call(prompt: str = "a red fox", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "np", **more}


def plain() -> Stock:
    return small_pipeline(0), _call()


def img2img() -> Stock:
    return quiet(StableDiffusionImg2ImgPipeline.from_pipe(small_pipeline(1))), _call(image=picture(), strength=1.0)


def inpaint() -> Stock:
    mask = (picture(1)[:, :1] > 0.5).float()
    pipeline = quiet(StableDiffusionInpaintPipeline.from_pipe(small_pipeline(2)))
    return pipeline, _call(image=picture(), mask_image=mask, strength=1.0, **SIZE)


def inpaint_9_channels() -> Stock:
    mask = (picture(1)[:, :1] > 0.5).float()
    whole = small_pipeline(2, unet=small_unet(2, in_channels=9))
    pipeline = quiet(StableDiffusionInpaintPipeline.from_pipe(whole))
    return pipeline, _call(image=picture(), mask_image=mask, strength=1.0, **SIZE)


def controlnet() -> Stock:
    whole = small_pipeline(3)
    torch.manual_seed(3)
    net = randomised(ControlNetModel.from_unet(whole.unet, conditioning_embedding_out_channels=(8, 8)), 3)
    pipeline = quiet(StableDiffusionControlNetPipeline.from_pipe(whole, controlnet=net))
    return pipeline, _call(image=picture(2))


def t2i_adapter() -> Stock:
    torch.manual_seed(4)
    net = randomised(T2IAdapter(3, channels=[8, 16], num_res_blocks=1, downscale_factor=2), 4)
    parts = {name: part for name, part in small_pipeline(4).components.items() if name != "image_encoder"}
    pipeline = quiet(StableDiffusionAdapterPipeline(**parts, adapter=net, requires_safety_checker=False))
    return pipeline, _call(image=picture(3), **SIZE)


def perturbed_attention() -> Stock:
    whole = AutoPipelineForText2Image.from_pipe(small_pipeline(5), enable_pag=True, pag_applied_layers=["mid"])
    assert isinstance(whole, StableDiffusionPAGPipeline)
    return quiet(whole), _call(pag_scale=3.0)


def gligen() -> Stock:
    parts = small_pipeline(6, unet=small_unet(6, attention_type="gated")).components
    del parts["image_encoder"]
    pipeline = quiet(StableDiffusionGLIGENPipeline(**parts, requires_safety_checker=False))
    boxes = {"gligen_phrases": ["fox"], "gligen_boxes": [[0.1, 0.2, 0.5, 0.6]], "gligen_scheduled_sampling_beta": 0.4}
    return pipeline, _call(**boxes)


def ip_adapter() -> Stock:
    whole = small_pipeline(7)
    load_image_prompts(whole.unet)
    embeddings = torch.randn(2, 1, IMAGE_WIDTH, generator=generator(5))  # without, with
    return whole, _call(ip_adapter_image_embeds=[embeddings])


def lora() -> Stock:
    whole = small_pipeline(8)
    torch.manual_seed(8)
    whole.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    return whole, _call(cross_attention_kwargs={"scale": 0.5})


def ensemble() -> Stock:
    experts = [as_expert(small_pipeline(seed), f"expert {seed}") for seed in (9, 10)]
    return quiet(EnsembleDenoiser(experts).pipeline()), _call()


def without_guidance() -> Stock:
    return small_pipeline(11), _call(guidance_scale=1.0)


SD: dict[str, Callable[[], Stock]] = {
    "img2img": img2img,
    "inpaint": inpaint,
    "inpaint, 9 channels": inpaint_9_channels,
    "ControlNet": controlnet,
    "T2I-Adapter": t2i_adapter,
    "PAG": perturbed_attention,
    "GLIGEN": gligen,
    "IP-Adapter": ip_adapter,
    "LoRA": lora,
    "ensemble": ensemble,
    "without guidance": without_guidance,
}


def _sdxl_unet(seed: int) -> Any:
    added = {name: SDXL_UNET[name] for name in ("addition_embed_type", "cross_attention_dim")}
    return tiny_sdxl_unet(seed, **SMALL, **added, transformer_layers_per_block=1, attention_head_dim=(2, 4))


def small_sdxl(seed: int = 0) -> Any:
    return tiny_sdxl_pipeline(seed, unet=_sdxl_unet(seed))


def sdxl(seed: int = 0) -> Stock:
    return small_sdxl(seed), _call(**SIZE)


def sdxl_perturbed() -> Stock:
    whole = AutoPipelineForText2Image.from_pipe(sdxl(1)[0], enable_pag=True, pag_applied_layers=["mid"])
    assert isinstance(whole, StableDiffusionXLPAGPipeline)
    return quiet(whole), _call(pag_scale=3.0, **SIZE)


def flux(seed: int = 0, **call: Any) -> Stock:
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=6,
        axes_dims_rope=(2, 2, 4),
    )
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=tiny_vae(shift_factor=0.1),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=randomised(transformer, seed),
    )
    text = {"prompt_embeds": randn(1, 5, 12, seed=seed), "pooled_prompt_embeds": randn(1, 6, seed=seed + 1)}
    return quiet(pipeline), {"num_inference_steps": STEPS, "output_type": "np", **SIZE, **text, **call}


def flux_true_guidance() -> Stock:
    negative = {"negative_prompt_embeds": randn(1, 5, 12, seed=8), "negative_pooled_prompt_embeds": randn(1, 6, seed=9)}
    return flux(1, **negative, true_cfg_scale=3.0)


def sd3(seed: int = 0) -> Stock:
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=6,
        out_channels=4,
    )
    encoders = {f"{part}{number}": None for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")}
    pipeline = StableDiffusion3Pipeline(
        transformer=randomised(transformer, seed),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(shift_factor=0.1),
        **encoders,
    )
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    sizes = ((1, 5, 12), (1, 5, 12), (1, 6), (1, 6))
    text = {name: randn(*size, seed=seed + i) for i, (name, size) in enumerate(zip(names, sizes, strict=True))}
    return quiet(pipeline), {"num_inference_steps": STEPS, "output_type": "np", **SIZE, **text}


PAIRS: dict[str, tuple[Callable[[], Stock], Callable[[], Stock]]] = {
    **{name: (plain, make) for name, make in SD.items()},
    "SD as auxiliary of PAG": (perturbed_attention, plain),
    "SDXL": (sdxl, sdxl_perturbed),
    "FLUX": (flux, flux_true_guidance),
    "SD3": (sd3, lambda: sd3(1)),
}
