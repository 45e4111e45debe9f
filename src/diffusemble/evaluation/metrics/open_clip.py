"""CLIP weights under open_clip's names, read as transformers names them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

VIT_H_14: Mapping[str, Any] = {
    "projection_dim": 1024,
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "gelu",
        "projection_dim": 1024,
    },
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "projection_dim": 1024,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
        "bos_token_id": 49406,
        "pad_token_id": 1,
    },
}

WHOLE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "logit_scale": "logit_scale",
}
TURNED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",  # transformers' own spelling
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
LAYER = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)\.?((?:in_proj_)?(?:weight|bias))")


def transformers_keys(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The same weights under transformers' names.

    Three things differ beside the names: queries, keys and values are one matrix in open_clip, the two projections are
    stored the other way round, and the causal mask is no weight.

    Raises:
        ValueError: a name that no CLIP of open_clip has.
    """
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix("module.")
        if name != "attn_mask":
            found.update(_renamed(name, tensor, source))
    return found


def _renamed(name: str, tensor: Tensor, source: str) -> dict[str, Tensor]:
    layer = LAYER.fullmatch(name)
    if layer:
        visual, number, part, kind = layer.groups()
        prefix = f"{'vision' if visual else 'text'}_model.encoder.layers.{number}"
        if kind.startswith("in_proj_") and part == "attn":
            kind = kind.removeprefix("in_proj_")
            pieces = zip("qkv", tensor.chunk(3), strict=True)
            return {f"{prefix}.self_attn.{letter}_proj.{kind}": piece for letter, piece in pieces}
        if part in PARTS:
            return {f"{prefix}.{PARTS[part]}.{kind}": tensor}
    if name in WHOLE:
        return {WHOLE[name]: tensor}
    if name in TURNED:
        return {TURNED[name]: tensor.T}
    module, _, kind = name.rpartition(".")
    if module in NORMS:
        return {f"{NORMS[module]}.{kind}": tensor}
    raise ValueError(f"{source}: open_clip's CLIP has no {name!r}. Check that it is a CLIP checkpoint of open_clip.")
