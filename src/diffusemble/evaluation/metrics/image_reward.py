"""ImageReward (Xu et al. 2023, arXiv 2304.05977): a BLIP text encoder that looks at the picture, and a linear head."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffusemble.evaluation.metrics.aesthetic import LinearStack
from diffusemble.evaluation.metrics.base import Against, Device, Kind
from diffusemble.evaluation.metrics.pixels import Preparation
from diffusemble.evaluation.metrics.weights import Published, fill, read_tensors

WEIGHTS = Published("ImageReward.pt", "THUDM/ImageReward", "ImageReward.pt")
TOKENIZER = Published("bert-base-uncased", "google-bert/bert-base-uncased")
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072  # of the reward over the authors' data
LENGTH = 35  # tokens of a prompt that are read
VISION: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}
TEXT: Mapping[str, Any] = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "encoder_hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "is_decoder": True,  # which is how transformers asks for attention to the picture
}

VISION_NAMES = (
    (r"cls_token", "embeddings.class_embedding"),
    (r"pos_embed", "embeddings.position_embedding"),
    (r"patch_embed\.proj\.(.+)", r"embeddings.patch_embedding.\1"),
    (r"blocks\.(\d+)\.norm([12])\.(.+)", r"encoder.layers.\1.layer_norm\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv\.(.+)", r"encoder.layers.\1.self_attn.qkv.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.+)", r"encoder.layers.\1.self_attn.projection.\2"),
    (r"blocks\.(\d+)\.mlp\.(.+)", r"encoder.layers.\1.mlp.\2"),
    (r"norm\.(.+)", r"post_layernorm.\1"),
)


class RewardNet(nn.Module):
    """Picture and tokens to a reward that is not yet normalised.

    Args:
        vision, text: keys of ``BlipVisionConfig`` and ``BlipTextConfig``.
    """

    def __init__(self, vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers import BlipTextConfig, BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        self.vision = BlipVisionModel(BlipVisionConfig(**vision))
        self.text = BlipTextModel(BlipTextConfig(**text), add_pooling_layer=False)
        self.head = LinearStack(text["hidden_size"])

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Rewards ``[b]`` of pixel values ``[b 3 h w]`` and tokens ``[b s]`` with their mask ``[b s]``."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        everywhere = torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device)
        read = self.text(
            input_ids=tokens,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=everywhere,
        ).last_hidden_state
        found: Tensor = self.head(read[:, 0].float())
        return found


def own_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors under the names of ``RewardNet``; BLIP's projections, which it does not use, are left."""
    found = {}
    for key, tensor in tensors.items():
        if key.startswith("blip.visual_encoder."):
            found[f"vision.{_vision_key(key.removeprefix('blip.visual_encoder.'))}"] = tensor
        elif key.startswith("blip.text_encoder."):
            found[f"text.{key.removeprefix('blip.text_encoder.')}"] = tensor
        elif key.startswith("mlp."):
            found[f"head.{key.removeprefix('mlp.')}"] = tensor
    return found


def _vision_key(key: str) -> str:
    for pattern, name in VISION_NAMES:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, name, key)
    return key  # refused later, by name


class ImageReward:
    """Reward with mean 0 and deviation 1 over the authors' data, about -2 to 2; higher is better.

    Picture i is scored with prompt i. The authors' own ``score(prompt, list)`` has one prompt for all pictures.
    """

    kind: ClassVar[Kind] = "image"
    higher_is_better: ClassVar[bool] = True
    against: ClassVar[Against] = "prompt"

    def __init__(self, net: RewardNet, tokenizer: Any, device: Device = "cpu") -> None:
        self.net = net.requires_grad_(False).eval().to(device)
        self.tokenizer, self.device = tokenizer, device
        self.prepare = Preparation(net.vision.config.image_size)

    @classmethod
    def load(cls, weights: Path | None = None, device: Device = "cpu") -> ImageReward:
        """With the published weights."""
        from transformers import BertTokenizerFast

        file = WEIGHTS.find(weights)
        tokenizer = BertTokenizerFast.from_pretrained(TOKENIZER.find(weights))
        net = RewardNet(VISION, TEXT)
        fill(net, own_keys(read_tensors(file)), str(file))
        return cls(net, tokenizer, device)

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards ``[b]`` of images ``[b 3 h w]`` in [0, 1] with their prompts."""
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        ).to(self.device)
        pixels = self.prepare(images).to(self.device)
        rewards: Tensor = self.net(pixels, tokens["input_ids"], tokens["attention_mask"])
        return ((rewards - MEAN) / DEVIATION).cpu()
