"""One table of tiny FLUX, Chroma and SD3 transformers and of everything their ``forward`` accepts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from peft import LoraConfig
from torch import Tensor

from diffusemble.blocks.base import run_through
from diffusemble.ensembles.block_level import blocks_of
from law_families import flux_arguments, sd3_arguments
from tiny import randomised
from tiny_dit import T5_WIDTH, tiny_chroma, tiny_flux, tiny_sd3
from unet_inputs import BATCH, TOKENS, randn

IMAGE_WIDTH = 12  # of the image encoder before an IP-Adapter
Give = Callable[[Any, int], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One transformer and one way to call it.

    Attributes:
        build: the transformer.
        give: arguments of ``forward`` beside what it always needs, for the transformer and its number of image tokens.
        prepare: changes the built transformer (loads adapters).
        grid: height and width of the image tokens.
        cut: rows and columns of the latents that fill no patch (SD3).
    """

    build: Callable[[], Any]
    give: Give = lambda model, length: {}
    prepare: Callable[[Any], Any] = lambda model: None
    grid: tuple[int, int] = (5, 7)
    cut: int = 0
    dtype: torch.dtype = torch.float32

    def model(self) -> Any:
        """The transformer, in evaluation mode; the same weights on every call."""
        model = self.build()
        self.prepare(model)
        return model.to(self.dtype).eval()

    def arguments(self, model: Any) -> dict[str, Any]:
        """All keyword arguments of ``forward``, newly made."""
        return {**self.plain(model), **self.give(model, self.grid[0] * self.grid[1])}

    def plain(self, model: Any) -> dict[str, Any]:
        """Those it cannot do without."""
        flux = hasattr(model, "single_transformer_blocks")
        size = self.grid if flux else tuple(2 * side + self.cut for side in self.grid)
        sample = randn(BATCH, model.config.in_channels, *size, dtype=self.dtype)
        text = randn(BATCH, TOKENS, T5_WIDTH, seed=1, dtype=self.dtype)
        made = (flux_arguments if flux else sd3_arguments)(sample, torch.tensor([701.0, 37.0]), [text])
        if flux and not model.config.get("guidance_embeds", False):
            del made["guidance"]
        if "pooled_projection_dim" not in model.config:  # Chroma
            del made["pooled_projections"]
        return made


def schnell() -> Any:
    """FLUX without guidance embedding."""
    return tiny_flux(guidance_embeds=False)


def sd30() -> Any:
    """SD 3.0: no dual attention, no norms of queries and keys."""
    return tiny_sd3(dual_attention_layers=(), qk_norm=None)


ARCHITECTURES: Mapping[str, Callable[[], Any]] = {
    "flux": tiny_flux,
    "schnell": schnell,
    "chroma": tiny_chroma,
    "sd3.5": tiny_sd3,
    "sd3.0": sd30,
}


def older_ids(model: Any, length: int) -> dict[str, Any]:
    """Positions with a batch axis, as older pipelines give them."""
    made = Case(tiny_flux).plain(model)
    return {name: made[name].expand(BATCH, -1, -1) for name in ("img_ids", "txt_ids")}


def residuals(name: str, count: int) -> Give:
    """A ControlNet's output."""
    return lambda model, length: {name: [randn(BATCH, length, model.inner_dim, seed=30 + i) for i in range(count)]}


def both_streams(repeat: bool) -> Give:
    """A ControlNet's output for FLUX's double and single blocks; ``repeat`` as XLabs' ControlNets ask for."""
    double, single = residuals("controlnet_block_samples", 2), residuals("controlnet_single_block_samples", 2)
    return lambda model, length: {
        **double(model, length),
        **single(model, length),
        "controlnet_blocks_repeat": repeat,
    }


def strength(value: float) -> Give:
    """Scale of the LoRA."""
    return lambda model, length: {"joint_attention_kwargs": {"scale": value}}


def load_lora(model: Any) -> None:
    """A LoRA whose weights are not zero."""
    torch.manual_seed(9)
    model.add_adapter(LoraConfig(r=3, target_modules=["to_q", "to_v", "proj_out"], init_lora_weights=False))


def load_flux_image_prompt(model: Any) -> None:
    """An IP-Adapter with four image tokens, through diffusers' own loader."""
    model._load_ip_adapter_weights([flux_image_prompt_weights(model)])


def flux_image_prompt_weights(model: Any) -> dict[str, dict[str, Tensor]]:
    """Weights of an IP-Adapter with four image tokens, by diffusers' names."""
    blocks = len(model.transformer_blocks)
    projection = {
        "proj.weight": randn(4 * T5_WIDTH, IMAGE_WIDTH, seed=10),
        "proj.bias": randn(4 * T5_WIDTH, seed=20),
        "norm.weight": randn(T5_WIDTH, seed=30),
        "norm.bias": randn(T5_WIDTH, seed=40),
    }
    attentions = {
        f"{index}.to_{part}_ip.{kind}": randn(*shape, seed=2 * index + (part == "v"))
        for index in range(blocks)
        for part in "kv"
        for kind, shape in (("weight", (model.inner_dim, T5_WIDTH)), ("bias", (model.inner_dim,)))
    }
    return {"image_proj": projection, "ip_adapter": attentions}


def load_sd3_image_prompt(model: Any) -> None:
    """The processors and the projection of SD3's IP-Adapter."""
    torch.manual_seed(8)
    width = model.inner_dim
    model.set_attn_processor(
        {
            name: SD3IPAdapterJointAttnProcessor2_0(width, width, model.config.attention_head_dim, 16)
            for name in model.attn_processors
        }
    )
    model.image_proj = IPAdapterTimeImageProjection(
        IMAGE_WIDTH, width, 16, depth=1, dim_head=4, heads=2, num_queries=3, timestep_in_dim=8
    )
    randomised(model, 8)


def flux_image_prompt(model: Any, length: int) -> dict[str, Any]:
    """One image."""
    return {"joint_attention_kwargs": {"ip_adapter_image_embeds": [randn(BATCH, 1, IMAGE_WIDTH, seed=50)]}}


def sd3_image_prompt(model: Any, length: int) -> dict[str, Any]:
    """One image of six tokens."""
    return {"joint_attention_kwargs": {"ip_adapter_image_embeds": randn(BATCH, 6, IMAGE_WIDTH, seed=50)}}


def text_mask(model: Any, length: int) -> dict[str, Any]:
    """The second prompt is shorter."""
    mask = torch.ones(BATCH, TOKENS + length)
    mask[1, 4:TOKENS] = 0
    return {"attention_mask": mask}


def attention_mask(model: Any, length: int) -> dict[str, Any]:
    """A bias on what image and text tokens see, for the attentions themselves."""
    return {"joint_attention_kwargs": {"attention_mask": randn(BATCH, 1, TOKENS + length, TOKENS + length, seed=60)}}


def skipped(*layers: int) -> Give:
    """Blocks to leave out."""
    return lambda model, length: {"skip_layers": list(layers)}


def _for_all(name: str, **options: Any) -> dict[str, Case]:
    return {f"{architecture}-{name}": Case(build, **options) for architecture, build in ARCHITECTURES.items()}


PLAIN: Mapping[str, Case] = {
    **_for_all("plain"),
    **_for_all("float64", dtype=torch.float64),
    **_for_all("bfloat16", dtype=torch.bfloat16),
    **_for_all("row", grid=(1, 6)),
    "flux-older-ids": Case(tiny_flux, older_ids),
    "sd3.5-odd": Case(tiny_sd3, cut=1),
    "sd3.5-chunked": Case(tiny_sd3, prepare=lambda model: model.enable_forward_chunking(1, dim=1)),
    "sd3.0-fused": Case(sd30, prepare=lambda model: model.fuse_qkv_projections()),
    "flux-fill": Case(lambda: tiny_flux(in_channels=30, out_channels=16)),
}
"""Calls without anything to add."""

CONTROL = "block_controlnet_hidden_states"
GIVEN: Mapping[str, Case] = {
    **_for_all("lora", give=strength(0.6), prepare=load_lora),
    "flux-lora-off": Case(tiny_flux, strength(0.0), load_lora),
    "flux-controlnet": Case(tiny_flux, both_streams(False)),
    "flux-controlnet-repeat": Case(lambda: tiny_flux(num_layers=4), both_streams(True)),
    "flux-controlnet-double": Case(tiny_flux, residuals("controlnet_block_samples", 1)),
    "flux-controlnet-single": Case(tiny_flux, residuals("controlnet_single_block_samples", 3)),
    "flux-image-prompt": Case(tiny_flux, flux_image_prompt, load_flux_image_prompt),
    "flux-attention-mask": Case(tiny_flux, attention_mask),
    "chroma-image-prompt": Case(tiny_chroma, flux_image_prompt, load_flux_image_prompt),
    "chroma-mask": Case(tiny_chroma, text_mask),
    "chroma-controlnet": Case(tiny_chroma, both_streams(False)),
    "sd3.5-controlnet": Case(tiny_sd3, residuals(CONTROL, 2)),
    "sd3.5-controlnet-uneven": Case(tiny_sd3, residuals(CONTROL, 3)),
    "sd3.5-image-prompt": Case(tiny_sd3, sd3_image_prompt, load_sd3_image_prompt),
    "sd3.5-skip": Case(tiny_sd3, skipped(0, 2)),
    "sd3.5-skip-last": Case(tiny_sd3, skipped(3)),
}
"""Calls with an optional argument; leaving it out must change the result."""

CASES: Mapping[str, Case] = {**PLAIN, **GIVEN}


def ours_for(model: Any, arguments: Mapping[str, Any]) -> Tensor:
    """What a transformer predicts, block by block."""
    blocks = blocks_of(model)
    call = blocks.read(arguments)
    return blocks.write(run_through(blocks, call.sample, call.timestep, call.inputs)).sample
