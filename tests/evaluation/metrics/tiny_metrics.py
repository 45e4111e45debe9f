"""Tiny models of the metrics' real classes, and a folder with weights for all of them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertTokenizerFast, BlipTextConfig, CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model
from transformers.models.blip.modeling_blip_text import BlipTextModel

from diffusemble.evaluation.metrics.aesthetic import LinearStack
from tiny import tiny_tokenizer

TOKENS = len(tiny_tokenizer())
CLIP: dict[str, Any] = {
    "projection_dim": 12,
    "vision_config": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 28,
        "patch_size": 14,
        "hidden_act": "gelu",
        "projection_dim": 12,
    },
    "text_config": {
        "hidden_size": 16,
        "intermediate_size": 36,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "hidden_act": "gelu",
        "projection_dim": 12,
        "vocab_size": TOKENS,
        "max_position_embeddings": 20,
        "eos_token_id": TOKENS - 1,
        "bos_token_id": TOKENS - 2,
        "pad_token_id": TOKENS - 1,
    },
}
BLIP_VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}
BLIP_TEXT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "encoder_hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "is_decoder": True,
}


def shaken(module: nn.Module, seed: int) -> nn.Module:
    """The module with weights that are nowhere zero or one, so that a part left out shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + 0.1)
    return module.eval()


def tiny_clip(seed: int = 0, **vision: Any) -> CLIPModel:
    """A CLIP model with two towers of different widths."""
    config = {**CLIP, "vision_config": {**CLIP["vision_config"], **vision}}
    return shaken(CLIPModel(CLIPConfig(**config)), seed)


def tiny_dinov2() -> Dinov2Model:
    """A DINOv2 of 14-pixel patches."""
    config = Dinov2Config(hidden_size=20, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    return shaken(Dinov2Model(config), 3)


def tiny_bert_tokenizer() -> BertTokenizerFast:
    """A word-piece tokenizer that spells."""
    letters = [chr(number) for number in range(ord("a"), ord("z") + 1)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    return BertTokenizerFast(vocab={token: number for number, token in enumerate(tokens)})


class OpenClipTower(nn.Module):
    """Layers of open_clip: one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int, layers: int, inner: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList()
        for _ in range(layers):
            block = nn.Module()
            block.ln_1, block.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            block.attn = nn.MultiheadAttention(width, heads, batch_first=True)
            block.mlp = nn.Module()
            block.mlp.c_fc, block.mlp.c_proj = nn.Linear(width, inner), nn.Linear(inner, width)
            self.resblocks.append(block)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            y = block.ln_1(x)
            x = x + block.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
            x = x + block.mlp.c_proj(nn.functional.gelu(block.mlp.c_fc(block.ln_2(x))))
        return x


class OpenClip(nn.Module):
    """CLIP as open_clip builds and names it, of the sizes of ``CLIP``."""

    def __init__(self) -> None:
        super().__init__()
        see, read = CLIP["vision_config"], CLIP["text_config"]
        wide, out = see["hidden_size"], CLIP["projection_dim"]
        v = self.visual = nn.Module()
        v.class_embedding = nn.Parameter(torch.zeros(wide))
        v.positional_embedding = nn.Parameter(torch.zeros(1 + 4, wide))
        v.proj = nn.Parameter(torch.zeros(wide, out))
        v.conv1 = nn.Conv2d(3, wide, 14, 14, bias=False)
        v.ln_pre, v.ln_post = nn.LayerNorm(wide), nn.LayerNorm(wide)
        v.transformer = OpenClipTower(wide, 3, 2, see["intermediate_size"])
        self.token_embedding = nn.Embedding(TOKENS, read["hidden_size"])
        self.positional_embedding = nn.Parameter(torch.zeros(20, read["hidden_size"]))
        self.transformer = OpenClipTower(read["hidden_size"], 2, 3, read["intermediate_size"])
        self.ln_final = nn.LayerNorm(read["hidden_size"])
        self.text_projection = nn.Parameter(torch.zeros(read["hidden_size"], out))
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def encode_image(self, pixels: Tensor) -> Tensor:
        v = self.visual
        x = v.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], dim=1) + v.positional_embedding
        return v.ln_post(v.transformer(v.ln_pre(x)))[:, 0] @ v.proj

    def encode_text(self, tokens: Tensor) -> Tensor:
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        causal = torch.full((tokens.shape[1],) * 2, -torch.inf).triu(1)
        x = self.ln_final(self.transformer(x, causal))
        return x[torch.arange(len(x)), tokens.argmax(dim=1)] @ self.text_projection


class BlipTower(nn.Module):
    """The picture half of BLIP as its authors build and name it (timm's names), of the sizes of ``BLIP_VISION``."""

    def __init__(self) -> None:
        super().__init__()
        wide, inner = BLIP_VISION["hidden_size"], BLIP_VISION["intermediate_size"]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, wide))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + 4, wide))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, wide, 16, 16)
        self.blocks = nn.ModuleList()
        for _ in range(2):
            block = nn.Module()
            block.norm1, block.norm2 = nn.LayerNorm(wide, 1e-6), nn.LayerNorm(wide, 1e-6)
            block.attn, block.mlp = nn.Module(), nn.Module()
            block.attn.qkv, block.attn.proj = nn.Linear(wide, 3 * wide), nn.Linear(wide, wide)
            block.mlp.fc1, block.mlp.fc2 = nn.Linear(wide, inner), nn.Linear(inner, wide)
            self.blocks.append(block)
        self.norm = nn.LayerNorm(wide, 1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            q, k, v = block.attn.qkv(block.norm1(x)).unflatten(2, (3, 3, -1)).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + block.attn.proj(y)
            x = x + block.mlp.fc2(nn.functional.gelu(block.mlp.fc1(block.norm2(x))))
        return self.norm(x)


def reward_tensors() -> dict[str, Tensor]:
    """The tensors of ImageReward under the published names, tiny."""
    tower, head = shaken(BlipTower(), 1), shaken(LinearStack(BLIP_TEXT["hidden_size"]), 2)
    text = shaken(BlipTextModel(BlipTextConfig(**BLIP_TEXT), add_pooling_layer=False), 3)
    parts = {"blip.visual_encoder": tower, "blip.text_encoder": text, "mlp": head}
    return {f"{prefix}.{key}": value for prefix, part in parts.items() for key, value in part.state_dict().items()}


def write_weights(folder: Path) -> Path:
    """Every published file and folder, tiny, but for Inception's."""
    for seed, name in enumerate(("clip-vit-large-patch14", "clip-vit-large-patch14-336", "PickScore_v1")):
        tiny_clip(seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    tiny_dinov2().save_pretrained(folder / "dinov2-large")
    tiny_bert_tokenizer().save_pretrained(folder / "bert-base-uncased")
    (folder / "bert-base-uncased/config.json").write_text('{"model_type": "bert"}')
    for seed, name in enumerate(("HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt")):
        torch.save({"state_dict": shaken(OpenClip(), seed).state_dict()}, folder / name)
    torch.save(reward_tensors(), folder / "ImageReward.pt")
    torch.save(shaken(LinearStack(12), 5).state_dict(), folder / "sac+logos+ava1-l14-linearMSE.pth")
    return folder
