"""One table of tiny U-Nets and of everything their ``forward`` accepts; parity and ensemble tests run over it.

A case builds its inputs afresh on every call, because diffusers' ``forward`` empties the lists it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor

from tiny import WIDTH, randomised, tiny_sdxl_unet, tiny_unet

BATCH, TOKENS = 2, 7
ODD = (17, 19)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Seeded noise that does not touch the global generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


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

Give = Callable[[UNet2DConditionModel, Tensor], dict[str, Any]]


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


def plain_inputs(unet: UNet2DConditionModel, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """What this architecture cannot do without: text, and SDXL's pooled text and sizes."""
    width = unet.config.encoder_hid_dim or unet.config.cross_attention_dim
    width = width if isinstance(width, int) else width[0]
    plain: dict[str, Any] = {"encoder_hidden_states": randn(BATCH, TOKENS, width, seed=1, dtype=dtype)}
    if unet.config.addition_embed_type == "text_time":
        ids = (unet.config.projection_class_embeddings_input_dim - WIDTH) // unet.config.addition_time_embed_dim
        plain["added_cond_kwargs"] = {
            "text_embeds": randn(BATCH, WIDTH, seed=2, dtype=dtype),
            "time_ids": torch.arange(1, BATCH * ids + 1, dtype=dtype).reshape(BATCH, ids),
        }
    return plain


# -- what can be given -----------------------------------------------------------------------------------------------


def text_mask(unet: UNet2DConditionModel, sample: Tensor) -> dict[str, Any]:
    """The second prompt is shorter."""
    mask = torch.ones(BATCH, TOKENS)
    mask[1, 4:] = 0
    return {"encoder_attention_mask": mask}


def image_mask(unet: UNet2DConditionModel, sample: Tensor) -> dict[str, Any]:
    """A mask over the image tokens of the only level with attention."""
    height, width = (-(-side // 2) for side in sample.shape[-2:])
    mask = torch.ones(BATCH, height * width)
    mask[0, ::3] = 0
    return {"attention_mask": mask}


def controlnet(unet: UNet2DConditionModel, sample: Tensor) -> dict[str, Any]:
    """Residuals of a real ControlNet."""
    torch.manual_seed(3)
    net = randomised(ControlNetModel.from_unet(unet), seed=3)
    picture = randn(BATCH, 3, *(8 * side for side in sample.shape[-2:]), seed=4, dtype=sample.dtype)
    with torch.no_grad():
        skips, mid = net(sample, 7, controlnet_cond=picture, return_dict=False, **plain_inputs(unet, sample.dtype))
    return {"down_block_additional_residuals": tuple(skips), "mid_block_additional_residual": mid}


def adapter(unet: UNet2DConditionModel, sample: Tensor) -> dict[str, Any]:
    """Feature maps of a real T2I-adapter, as a list, which ``forward`` empties."""
    xl = unet.config.addition_embed_type == "text_time"
    kind, factor = ("full_adapter_xl", 16) if xl else ("full_adapter", 8)
    torch.manual_seed(5)
    net = T2IAdapter(3, channels=[16, 16, 32, 32], num_res_blocks=1, downscale_factor=factor, adapter_type=kind)
    picture = randn(BATCH, 3, *(8 * side for side in sample.shape[-2:]), seed=6, dtype=sample.dtype)
    with torch.no_grad():
        maps = list(randomised(net, seed=5)(picture.float()))
    fitting = (
        3 if xl and len(unet.down_blocks) == 4 else 4
    )  # no adapter was made for the refiner; its last map is small
    return {"down_intrablock_additional_residuals": [each.to(sample.dtype) for each in maps[:fitting]]}


def legacy_adapter(unet: UNet2DConditionModel, sample: Tensor) -> dict[str, Any]:
    """The same maps under the name that ControlNets use."""
    return {"down_block_additional_residuals": adapter(unet, sample)["down_intrablock_additional_residuals"]}


def controlnet_and_adapter(unet: UNet2DConditionModel, sample: Tensor) -> dict[str, Any]:
    """Both at once."""
    return {**controlnet(unet, sample), **adapter(unet, sample)}


IMAGE_WIDTH = 12  # of the image encoder before an IP-Adapter


def load_image_prompts(unet: UNet2DConditionModel, adapters: int = 1) -> None:
    """IP-Adapters with four image tokens each, through diffusers' own loader."""
    width, states = unet.config.cross_attention_dim, []
    for number in range(adapters):
        projection = {
            "proj.weight": randn(4 * width, IMAGE_WIDTH, seed=10 + number),
            "proj.bias": randn(4 * width, seed=20 + number),
            "norm.weight": randn(width, seed=30 + number),
            "norm.bias": randn(width, seed=40 + number),
        }
        widths = [processor.to_q.out_features for processor in _cross_attentions(unet)]
        attentions = {
            f"{2 * index + 1}.to_{part}_ip.weight": randn(out, width, seed=100 * number + 2 * index + (part == "v"))
            for index, out in enumerate(widths)
            for part in "kv"
        }
        states.append({"image_proj": projection, "ip_adapter": attentions})
    unet._load_ip_adapter_weights(states)


def _cross_attentions(unet: UNet2DConditionModel) -> list[Any]:
    return [unet.get_submodule(name.rsplit(".", 1)[0]) for name in unet.attn_processors if "attn2" in name]


def image_prompt(unet: UNet2DConditionModel, sample: Tensor) -> dict[str, Any]:
    """One image per IP-Adapter."""
    count = len(unet.encoder_hid_proj.image_projection_layers)
    embeds = [randn(BATCH, 1, IMAGE_WIDTH, seed=50 + number, dtype=sample.dtype) for number in range(count)]
    return {"added_cond_kwargs": {"image_embeds": embeds}}


def masked_image_prompts(unet: UNet2DConditionModel, sample: Tensor) -> dict[str, Any]:
    """Two images, one for either half of the picture."""
    left = torch.zeros(1, 1, *sample.shape[-2:])
    left[..., : sample.shape[-1] // 2] = 1
    return {**image_prompt(unet, sample), "cross_attention_kwargs": {"ip_adapter_masks": [left, 1 - left]}}


def boxes(unet: UNet2DConditionModel, sample: Tensor) -> dict[str, Any]:
    """GLIGEN: two boxes with phrases, the second one empty."""
    given = {
        "boxes": torch.tensor([[[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 0.0, 0.0]]]).repeat(BATCH, 1, 1),
        "masks": torch.tensor([[1.0, 0.0]]).repeat(BATCH, 1),
        "positive_embeddings": randn(BATCH, 2, WIDTH, seed=7),
    }
    return {"cross_attention_kwargs": {"gligen": given}}


def boxes_with_pictures(unet: UNet2DConditionModel, sample: Tensor) -> dict[str, Any]:
    """GLIGEN with phrases and reference pictures."""
    given = boxes(unet, sample)["cross_attention_kwargs"]["gligen"]
    mask = given["masks"]
    phrases, pictures = given.pop("positive_embeddings"), randn(BATCH, 2, WIDTH, seed=8)
    given |= {
        "phrases_masks": mask,
        "image_masks": 1 - mask,
        "phrases_embeddings": phrases,
        "image_embeddings": pictures,
    }
    return {"cross_attention_kwargs": {"gligen": given}}


def load_lora(unet: UNet2DConditionModel) -> None:
    """A LoRA whose weights are not zero."""
    torch.manual_seed(9)
    unet.add_adapter(LoraConfig(r=3, target_modules=["to_q", "to_v", "proj_in"], init_lora_weights=False))


def strength(value: float) -> Give:
    """Scale of the LoRA."""
    return lambda unet, sample: {"cross_attention_kwargs": {"scale": value}}


def free_u(unet: UNet2DConditionModel) -> None:
    """FreeU as its authors advise for SD 1.4."""
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


def labels(*values: Any) -> Give:
    """Class labels; the same for the whole table."""
    return lambda unet, sample: {"class_labels": torch.tensor(values[0] if len(values) == 1 else values)}


def given(name: str, *shape: int, key: str | None = None) -> Give:
    """An argument of noise ``[b *shape]``, or such an entry ``key`` of a dictionary."""

    def give(unet: UNet2DConditionModel, sample: Tensor) -> dict[str, Any]:
        noise = randn(BATCH, *shape, seed=11, dtype=sample.dtype)
        return {name: noise if key is None else {key: noise}}

    return give


# -- the table -------------------------------------------------------------------------------------------------------


def _for_all(name: str, **options: Any) -> dict[str, Case]:
    return {f"{architecture}-{name}": Case(build, **options) for architecture, build in ARCHITECTURES.items()}


PLAIN: Mapping[str, Case] = {
    **_for_all("plain"),
    **_for_all("odd", size=ODD),
    **_for_all("float", timestep=7.25),
    **_for_all("0-d", timestep=torch.tensor(7)),
    **_for_all("1-d", timestep=torch.tensor([7, 901])),
    **_for_all("float64", dtype=torch.float64),
    **_for_all("bfloat16", dtype=torch.bfloat16),
}
"""Calls without anything to add."""

GIVEN: Mapping[str, Case] = {
    **_for_all("text-mask", give=text_mask),
    **_for_all("controlnet", give=controlnet),
    **_for_all("controlnet-odd", give=controlnet, size=ODD),
    **_for_all("adapter", give=adapter),
    **_for_all("controlnet-adapter", give=controlnet_and_adapter),
    **_for_all("image-prompt", give=image_prompt, prepare=load_image_prompts),
    **_for_all("lora", give=strength(0.6), prepare=load_lora),
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
