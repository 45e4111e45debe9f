"""Experts that differ: tiny real pipelines with their own schedules, predictions, text encoders and architectures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any

import numpy as np
import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    ChromaTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from torch import Tensor
from transformers import CLIPTokenizer

from diffusemble import OutputEnsembleDenoiser
from diffusemble.ensembles.assembly import assemble
from diffusemble.experts.expert import Expert
from stock import small_pipeline, small_sdxl, small_unet
from tiny import (
    as_expert,
    randomised,
    tiny_pipeline,
    tiny_scheduler,
    tiny_text_encoder,
    tiny_vae,
)
from tiny_dit import (
    T5_WIDTH,
    tiny_chroma_pipeline,
    tiny_flow_scheduler,
    tiny_flux,
    tiny_flux_pipeline,
    tiny_sd3,
    tiny_sd3_pipeline,
    tiny_t5,
    tiny_t5_tokenizer,
)
from tiny_z_image import tiny_z_image_pipeline

ATOL = 2e-5


def other_tokenizer(length: int = 11) -> CLIPTokenizer:
    """A tokenizer that spells with other numbers, and to another length, than ``tiny_tokenizer``."""
    letters = [chr(number) for number in range(126, 32, -1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *(letter + "</w>" for letter in letters), *letters]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=length)


@cache
def stable(name: str = "sd1", seed: int = 0) -> Expert:
    """Like SD 1.x: predicts noise."""
    return as_expert(small_pipeline(seed), name)


@cache
def wider(name: str = "sd2") -> Expert:
    """Like SD 2.x, see ``tiny_wider_pipeline``."""
    return as_expert(tiny_wider_pipeline(), name)


def tiny_wider_pipeline() -> StableDiffusionPipeline:
    """Like SD 2.x: predicts v, with a wider text encoder and a tokenizer of its own."""
    return tiny_pipeline(
        1,
        unet=small_unet(1, cross_attention_dim=40),
        text_encoder=tiny_text_encoder(3, hidden_size=40),
        tokenizer=other_tokenizer(),
        scheduler=tiny_scheduler(prediction_type="v_prediction"),
    )


def tiny_pixart_pipeline(seed: int = 0, **config: Any) -> PixArtSigmaPipeline:
    """PixArt-Σ with the VAE of the other tiny pipelines; it also learned its variance."""
    torch.manual_seed(seed)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 6, "cross_attention_dim": 12, "num_layers": 2}
    latents = {"in_channels": 4, "out_channels": 8, "sample_size": 8, "patch_size": 2, "norm_num_groups": 4}
    transformer = PixArtTransformer2DModel(**{**sizes, **latents, "caption_channels": T5_WIDTH, **config})
    pipeline = PixArtSigmaPipeline(
        tokenizer=tiny_t5_tokenizer(),
        text_encoder=tiny_t5(seed),
        vae=tiny_vae(),
        transformer=randomised(transformer, seed),
        scheduler=tiny_scheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_auraflow_pipeline(seed: int = 0) -> AuraFlowPipeline:
    """AuraFlow, a flow, with the VAE of the tiny pipelines that predict noise."""
    torch.manual_seed(seed)
    sizes = {"num_mmdit_layers": 1, "num_single_dit_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}
    text = {"joint_attention_dim": T5_WIDTH, "caption_projection_dim": 16, "pos_embed_max_size": 64}
    pipeline = AuraFlowPipeline(
        tokenizer=tiny_t5_tokenizer(),
        text_encoder=tiny_t5(seed + 20),
        vae=tiny_vae(),
        transformer=randomised(AuraFlowTransformer2DModel(sample_size=8, **sizes, **text), seed),
        scheduler=tiny_flow_scheduler(shift=1.73),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, **options: Any) -> np.ndarray:
    """Pictures of a pipeline in two steps, always from the same noise."""
    pipeline.set_progress_bar_config(disable=True)
    settings = {
        "prompt": "a red fox",
        "negative_prompt": "blurry, of many fingers",
        "num_inference_steps": 2,
        "guidance_scale": 4.0,
        "height": 16,
        "width": 16,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(11),
    }
    if isinstance(pipeline, PixArtSigmaPipeline):
        settings |= {"use_resolution_binning": False, "clean_caption": False}
    return pipeline(**{**settings, **options}).images


# -- experts of all families -------------------------------------------------------------------------------------------


def together(experts: Sequence[Expert], name: str = "mean", **options: Any) -> OutputEnsembleDenoiser:
    ensemble = assemble(experts, "output", name, options)
    assert isinstance(ensemble, OutputEnsembleDenoiser)
    return ensemble.eval()


def schnell() -> Expert:
    return as_expert(tiny_flux_pipeline(5, transformer=tiny_flux(5, guidance_embeds=False)), "schnell")


def medium() -> Expert:
    transformer = tiny_sd3(9, num_layers=3, dual_attention_layers=(), qk_norm=None)
    return as_expert(tiny_sd3_pipeline(4, transformer=transformer, text_encoder_3=None, tokenizer_3=None), "medium")


FAMILIES: dict[str, Callable[[], Expert]] = {
    "SD 1": stable,
    "SD 2": wider,
    "SDXL": lambda: as_expert(small_sdxl(2), "xl"),
    "PixArt": lambda: as_expert(tiny_pixart_pipeline(), "pixart"),
    "AuraFlow": lambda: as_expert(tiny_auraflow_pipeline(), "auraflow"),
    "SD 3": lambda: as_expert(tiny_sd3_pipeline(), "sd3"),
    "SD 3 without T5": medium,
    "FLUX": lambda: as_expert(tiny_flux_pipeline(), "dev"),
    "FLUX without guidance": schnell,
    "Chroma": lambda: as_expert(tiny_chroma_pipeline(7), "chroma"),
    "Z-Image": lambda: as_expert(tiny_z_image_pipeline(7), "z-image"),
}


@cache
def expert(name: str) -> Expert:
    """One of ``FAMILIES``, built once."""
    return FAMILIES[name]()


# -- one network, retrained exactly ------------------------------------------------------------------------------------


class _Retrained(UNet2DConditionModel):
    """A denoiser that has learned by heart what another one says, in terms of its own; formulas written out anew."""

    def learn(self, by_heart: Any, terms: str) -> None:
        self.__dict__["by_heart"] = by_heart
        self.terms = terms
        self.ratios = ratios(tiny_scheduler().alphas_cumprod)
        self.linear = ratios(LINEAR.alphas_cumprod)

    @wraps(UNet2DConditionModel.forward)
    def forward(self, sample: Tensor, timestep: Any, **inputs: Any) -> Any:
        times = torch.as_tensor(timestep).reshape(-1).expand(len(sample)).double().numpy()
        if self.terms == "flow":
            ratio = np.log(times / 1000) - np.log1p(-times / 1000)
        else:
            ratio = np.interp(times, np.arange(1000), self.linear if self.terms == "linear" else self.ratios)
        asked = np.interp(ratio, self.ratios, np.arange(1000))
        sigma, alpha = (torch.tensor(part).view(-1, 1, 1, 1) for part in (expit(ratio), expit(-ratio)))
        size = sigma + alpha if self.terms == "flow" else (sigma**2 + alpha**2) ** 0.5
        sigma, alpha = sigma / size, alpha / size  # of the latents that came
        latents = sample / ((sigma**2 + alpha**2) ** 0.5).float()
        times = timestep if self.terms == "v" else torch.tensor(asked).float()
        (noise,) = self.by_heart(latents, times, **{**inputs, "return_dict": False})
        clean = (sample - sigma * noise) / alpha
        said = {"v": alpha * noise - sigma * clean, "flow": noise - clean, "linear": noise, "sample": clean}
        return (said[self.terms].to(sample.dtype),)


class _Diffused:
    """A flow that has learned by heart what another one says, to predict v on a schedule that ends in noise."""

    def learn(self, by_heart: Any) -> None:
        self.__dict__["by_heart"] = by_heart
        self.ratios = ratios(TERMINAL.alphas_cumprod)

    def velocity(self, sample: Tensor, times: Tensor, flow_of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        ratio = np.interp(times.double().numpy(), np.arange(1000), self.ratios)
        shape = (-1, *[1] * (sample.ndim - 1))
        sigma, alpha = (torch.tensor(part).float().view(shape) for part in (expit(ratio), expit(-ratio)))
        size = (sigma**2 + alpha**2) ** 0.5
        latents = sample * size
        flow = flow_of(latents, sigma.view(-1))
        clean, noise = latents - sigma * flow, latents + alpha * flow
        return (alpha * noise - sigma * clean) / size


class _DiffusedChroma(_Diffused, ChromaTransformer2DModel):
    @wraps(ChromaTransformer2DModel.forward)
    def forward(self, hidden_states: Tensor, timestep: Tensor, **inputs: Any) -> Any:
        def flow_of(latents: Tensor, sigma: Tensor) -> Any:
            return self.by_heart(latents, timestep=sigma, **{**inputs, "return_dict": False})[0]

        return (self.velocity(hidden_states, 1000 * timestep, flow_of),)


class _DiffusedZImage(_Diffused, ZImageTransformer2DModel):
    """Its time runs the other way round, and so does what it says."""

    @wraps(ZImageTransformer2DModel.forward)
    def forward(self, x: list[Tensor], t: Tensor, cap_feats: list[Tensor], **_: Any) -> Any:
        def flow_of(latents: Tensor, sigma: Tensor) -> Tensor:
            return -torch.stack(self.by_heart(list(latents), 1 - sigma, cap_feats, return_dict=False)[0])

        return (list(-self.velocity(torch.stack(x), 1000 - 1000 * t, flow_of)),)


def diffused(expert: Expert) -> Expert:
    """A Chroma or Z-Image, which predicts a flow, as one that predicts v of a diffusion."""
    made: Any = _DiffusedChroma if isinstance(expert.denoiser, ChromaTransformer2DModel) else _DiffusedZImage
    with warnings.catch_warnings():  # as in ``tiny_chroma``
        warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)
        twin = made.from_config(expert.denoiser.config).eval()
    twin.learn(expert.denoiser)
    return Expert(f"{expert.name} in v", twin, {**expert.components, "scheduler": TERMINAL}, expert.pipeline_class)


def retrained(expert: Expert, terms: str) -> Expert:
    """``expert`` in other ``terms``: ``"v"``, ``"sample"``, ``"linear"`` (another schedule) or ``"flow"``."""
    twin = _Retrained.from_config(expert.denoiser.config).eval()
    twin.learn(expert.denoiser, terms)
    kinds = {"v": "v_prediction", "sample": "sample", "linear": "epsilon"}
    scheduler: Any = LINEAR if terms == "linear" else None
    if scheduler is None and terms != "flow":
        scheduler = tiny_scheduler(prediction_type=kinds[terms])
    parts = {**expert.components, "scheduler": scheduler or tiny_flow_scheduler()}
    return Expert(f"{expert.name} in {terms}", twin, parts, expert.pipeline_class)


def ratios(bars: Tensor) -> np.ndarray:
    """ln(σ / α) of a table of ᾱ; ∞ where there is no picture."""
    exact = bars.double()
    return ((1 - exact).log() - exact.log()).numpy() / 2


def expit(ratio: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-ρ)."""
    return 1 / (1 + np.exp(-ratio))


TERMINAL = tiny_scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
LINEAR = tiny_scheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02)
