"""Everything that ``UNet2DConditionModel.forward`` can be given: real side networks, adapters and masks, all tiny."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor

from diffusemble import pack_text
from tiny import WIDTH, randomised

BATCH, TOKENS = 2, 7


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Seeded noise that does not touch the global generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


Give = Callable[[UNet2DConditionModel, Tensor], dict[str, Any]]


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


def packed(inputs: dict[str, Any], n: int) -> dict[str, Any]:
    """Inputs of one expert, for ``n`` experts that read the same."""
    inputs = {**inputs, "encoder_hidden_states": pack_text([inputs["encoder_hidden_states"]] * n)}
    added = inputs.get("added_cond_kwargs", {})
    if "text_embeds" in added:
        inputs["added_cond_kwargs"] = {**added, "text_embeds": pack_text([added["text_embeds"]] * n)}
    return inputs


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
    unet._load_ip_adapter_weights([image_prompt_weights(unet, number) for number in range(adapters)])


def image_prompt_weights(unet: UNet2DConditionModel, number: int = 0) -> dict[str, dict[str, Tensor]]:
    """Weights of an IP-Adapter with four image tokens, as published ones are laid out."""
    width = unet.config.cross_attention_dim
    projection = {
        "proj.weight": randn(4 * width, IMAGE_WIDTH, seed=10 + number),
        "proj.bias": randn(4 * width, seed=20 + number),
        "norm.weight": randn(width, seed=30 + number),
        "norm.bias": randn(width, seed=40 + number),
    }
    widths = [attention.to_q.out_features for attention in _cross_attentions(unet)]
    attentions = {
        f"{2 * index + 1}.to_{part}_ip.weight": randn(out, width, seed=100 * number + 2 * index + (part == "v"))
        for index, out in enumerate(widths)
        for part in "kv"
    }
    return {"image_proj": projection, "ip_adapter": attentions}


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
    """A LoRA whose weights are not zero; of a rank that its scale can be multiplied with and divided by exactly."""
    torch.manual_seed(9)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "proj_in"], init_lora_weights=False))


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
