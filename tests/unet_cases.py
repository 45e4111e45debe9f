"""One table of tiny U-Nets and of everything their ``forward`` accepts; parity and ensemble tests run over it.

A case builds its inputs afresh on every call, because diffusers' ``forward`` empties the lists it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from tiny import WIDTH, tiny_sdxl_unet, tiny_unet
from unet_inputs import (
    BATCH,
    Give,
    adapter,
    boxes,
    boxes_with_pictures,
    controlnet,
    controlnet_and_adapter,
    free_u,
    given,
    image_mask,
    image_prompt,
    labels,
    legacy_adapter,
    load_image_prompts,
    load_lora,
    masked_image_prompts,
    plain_inputs,
    randn,
    strength,
    text_mask,
)

ODD = (17, 19)


def sd1(**config: Any) -> UNet2DConditionModel:
    """SD 1.x: 25 points."""
    return tiny_unet(**config)


def sd2(**config: Any) -> UNet2DConditionModel:
    """SD 2.x: linear projections, heads per level, wider text."""
    return tiny_unet(**{"use_linear_projection": True, "attention_head_dim": (2, 4, 4, 8), **config})


def sdxl(**config: Any) -> UNet2DConditionModel:
    """SDXL base: no attention on the first level, 19 points."""
    return tiny_sdxl_unet(**config)


def refiner(**config: Any) -> UNet2DConditionModel:
    """SDXL refiner: four levels, attention on the inner two, five time ids."""
    shape = {
        "block_out_channels": (16, 16, 32, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": 2,
        "attention_head_dim": (2, 4, 4, 8),
        "projection_class_embeddings_input_dim": 5 * 8 + WIDTH,
    }
    return tiny_sdxl_unet(**{**shape, **config})


def one_attention_level(**config: Any) -> UNet2DConditionModel:
    """Attention at one resolution only: the shape for which diffusers' self-attention mask has one length."""
    levels = {"block_out_channels": (16, 32), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    return tiny_unet(**{**levels, "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), **config})


ARCHITECTURES: Mapping[str, Callable[..., UNet2DConditionModel]] = {
    "sd1": sd1,
    "sd2": sd2,
    "sdxl": sdxl,
    "refiner": refiner,
}


@dataclass(frozen=True)
class Case:
    """One U-Net and one way to call it.

    Attributes:
        build: the U-Net.
        give: arguments of ``forward`` beside sample, timestep and what the architecture always needs.
        prepare: changes the built U-Net (loads adapters, switches FreeU on).
    """

    build: Callable[[], UNet2DConditionModel]
    give: Give = lambda unet, sample: {}
    prepare: Callable[[UNet2DConditionModel], Any] = lambda unet: None
    size: tuple[int, int] = (8, 8)
    timestep: Any = 7
    dtype: torch.dtype = torch.float32

    def unet(self) -> UNet2DConditionModel:
        """The U-Net, in evaluation mode; the same weights on every call."""
        unet = self.build()
        self.prepare(unet)
        return unet.to(self.dtype).eval()

    def sample(self, unet: UNet2DConditionModel) -> Tensor:
        """Noisy latents ``[b c h w]``."""
        return randn(BATCH, unet.config.in_channels, *self.size, dtype=self.dtype)

    def inputs(self, unet: UNet2DConditionModel) -> dict[str, Any]:
        """All keyword arguments of ``forward`` beside the sample and the timestep, newly made."""
        plain = plain_inputs(unet, self.dtype)
        given = self.give(unet, self.sample(unet))
        added = {**plain.get("added_cond_kwargs", {}), **given.pop("added_cond_kwargs", {})}
        return {**plain, **given, **({"added_cond_kwargs": added} if added else {})}


def _for_all(name: str, architectures: Iterable[str] = ARCHITECTURES, **options: Any) -> dict[str, Case]:
    return {f"{architecture}-{name}": Case(ARCHITECTURES[architecture], **options) for architecture in architectures}


ENDS = ("sd1", "sdxl")
"""Two architectures, for what their differences do not touch."""


PLAIN: Mapping[str, Case] = {
    **_for_all("plain"),
    **_for_all("odd", size=ODD),
    **_for_all("float", ENDS, timestep=7.25),
    **_for_all("0-d", ENDS, timestep=torch.tensor(7)),
    **_for_all("1-d", ENDS, timestep=torch.tensor([7, 901])),
    **_for_all("float64", ENDS, dtype=torch.float64),
    **_for_all("bfloat16", ENDS, dtype=torch.bfloat16),
}
"""Calls without anything to add."""

GIVEN: Mapping[str, Case] = {
    **_for_all("text-mask", ENDS, give=text_mask),
    **_for_all("controlnet", give=controlnet),
    **_for_all("controlnet-odd", give=controlnet, size=ODD),
    **_for_all("adapter", give=adapter),
    **_for_all("controlnet-adapter", give=controlnet_and_adapter),
    **_for_all("image-prompt", give=image_prompt, prepare=load_image_prompts),
    **_for_all("lora", ENDS, give=strength(0.6), prepare=load_lora),
    "sd1-adapter-legacy": Case(sd1, legacy_adapter),
    "sd1-masked-image-prompts": Case(sd1, masked_image_prompts, lambda unet: load_image_prompts(unet, 2)),
    "sd1-gligen": Case(lambda: sd1(attention_type="gated"), boxes),
    "sd1-gligen-pictures": Case(lambda: sd1(attention_type="gated-text-image"), boxes_with_pictures),
    "sd1-lora-off": Case(sd1, strength(0.0), load_lora),
    "sd1-guidance-embedding": Case(lambda: sd1(time_cond_proj_dim=6), given("timestep_cond", 6)),
    "attention-mask": Case(one_attention_level, image_mask),
    "attention-mask-odd": Case(one_attention_level, image_mask, size=ODD),
}
"""Calls with an optional argument; leaving it out must change the result."""

MODELS: Mapping[str, Case] = {
    **_for_all("free-u", prepare=free_u),
    "sd1-labels": Case(lambda: sd1(num_class_embeds=5), labels(3, 1)),
    "sd1-labels-timestep": Case(lambda: sd1(class_embed_type="timestep"), labels(3, 1)),
    "sd1-labels-identity": Case(lambda: sd1(class_embed_type="identity"), given("class_labels", 64)),
    "sd1-labels-concat": Case(lambda: sd1(num_class_embeds=5, class_embeddings_concat=True), labels(3, 1)),
    "sd1-labels-projection": Case(
        lambda: sd1(class_embed_type="projection", projection_class_embeddings_input_dim=6), given("class_labels", 6)
    ),
    "sd1-labels-simple": Case(
        lambda: sd1(class_embed_type="simple_projection", projection_class_embeddings_input_dim=6),
        given("class_labels", 6),
    ),
    "sd1-text-addition": Case(lambda: sd1(addition_embed_type="text", addition_embed_type_num_heads=4)),
    "sd1-image-addition": Case(
        lambda: sd1(addition_embed_type="image", encoder_hid_dim=9, encoder_hid_dim_type="text_proj"),
        given("added_cond_kwargs", 9, key="image_embeds"),
    ),
    "sd1-text-projection": Case(lambda: sd1(encoder_hid_dim=9, encoder_hid_dim_type="text_proj")),
    "sd1-centred": Case(lambda: sd1(center_input_sample=True)),
    "sd1-fourier": Case(lambda: sd1(time_embedding_type="fourier")),
    "sd1-time-activations": Case(lambda: sd1(time_embedding_act_fn="silu", timestep_post_act="mish")),
    "sd1-scale-shift": Case(lambda: sd1(resnet_time_scale_shift="scale_shift", resnet_out_scale_factor=1.3)),
    "sd1-only-cross": Case(lambda: sd1(only_cross_attention=(True, False, True, False), upcast_attention=True)),
    "sd1-uneven": Case(lambda: sd1(layers_per_block=(1, 2, 1, 3), transformer_layers_per_block=(2, 1, 1, 2))),
    "sd1-inpaint": Case(lambda: sd1(in_channels=9, mid_block_scale_factor=1.2)),
    "sdxl-nested": Case(
        lambda: sdxl(
            transformer_layers_per_block=((1, 1), (1, 2), (2, 1)),
            reverse_transformer_layers_per_block=((2, 1, 1), (1, 1, 2), (1, 1, 1)),
        )
    ),
    "sd1-fused-projections": Case(sd1, prepare=lambda unet: unet.fuse_qkv_projections()),
    "sd1-sliced-attention": Case(sd1, prepare=lambda unet: unet.set_attention_slice(1)),
}
"""U-Nets that are built or switched differently."""

CASES: Mapping[str, Case] = {**PLAIN, **GIVEN, **MODELS}
