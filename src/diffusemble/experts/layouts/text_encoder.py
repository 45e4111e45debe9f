"""Text encoders as checkpoints hold them: CLIP by transformers' names, OpenCLIP, T5."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diffusemble.experts.layouts.origin import Fused, Origin, Rule, Shapes, follow

_OPEN_CLIP: tuple[Rule, ...] = (
    (r"^text_model\.", ""),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.in_proj\.", ".attn.in_proj_"),
    (r"\.self_attn\.", ".attn."),
)
_PROJECTION = "text_projection.weight"
_QKV = Fused(r"(?:text_model\.)?encoder\.layers\.\d+\.self_attn\.", ("q_proj", "k_proj", "v_proj"), "in_proj")


def clip(model: Any, shapes: Shapes) -> dict[str, Origin]:
    """Origins of a CLIP text encoder's tensors by transformers' names; newer versions leave ``text_model`` out."""
    inside = {name: Origin("text_model." + name.removeprefix("text_model.")) for name in shapes}
    return {name: Origin(name) if name.startswith("text_projection") else one for name, one in inside.items()}


def bare_clip(model: Any, shapes: Shapes) -> dict[str, Origin]:
    """Origins of a CLIP text encoder's tensors in the oldest checkpoints, which leave ``text_model`` out too."""
    return {name: Origin(name.removeprefix("text_model.")) for name in shapes}


def t5(model: Any, shapes: Shapes) -> dict[str, Origin]:
    """Origins of a T5 encoder's tensors; its embedding has two names."""
    return {name: Origin("shared.weight" if name == "encoder.embed_tokens.weight" else name) for name in shapes}


def embedding_t5(model: Any, shapes: Shapes) -> dict[str, Origin]:
    """Origins of a T5 encoder's tensors in files that keep its embedding under the other name."""
    return {name: Origin("encoder.embed_tokens.weight" if name == "shared.weight" else name) for name in shapes}


def open_clip(model: Any, shapes: Shapes) -> dict[str, Origin]:
    """Origins of a CLIP text encoder's tensors in the layout of OpenCLIP."""
    origins = follow(shapes, _OPEN_CLIP, [_QKV])
    return {name: replace(one, transposed=name == _PROJECTION) for name, one in origins.items()}


def open_clip_with_layer(model: Any, shapes: Shapes) -> dict[str, Origin]:
    """The same where the projection is a linear layer, as diffusers' script for SDXL writes it."""
    origins = open_clip(model, shapes)
    return {name: Origin(name) if name == _PROJECTION else one for name, one in origins.items()}
