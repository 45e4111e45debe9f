"""Z-Image in the layout of its original code, and Qwen3 beside it."""

from __future__ import annotations

from typing import Any

from diffusemble.experts.layouts.origin import Fused, Origin, Rule, Shapes, follow

_FUSED = (Fused(r"(?:layers|noise_refiner|context_refiner)\.\d+\.attention\.", ("to_q", "to_k", "to_v"), "qkv"),)
_RULES: tuple[Rule, ...] = (
    (r"^all_(x_embedder|final_layer)\.2-1\.", r"\1."),
    (r"\.attention\.to_out\.0\.", ".attention.out."),
    (r"\.attention\.norm_([qk])\.", r".attention.\1_norm."),
)


def z_image(model: Any, shapes: Shapes) -> dict[str, Origin]:
    """Origins of a Z-Image transformer's tensors."""
    return follow(shapes, _RULES, _FUSED)


def qwen3(model: Any, shapes: Shapes) -> dict[str, Origin]:
    """Origins of a Qwen3's tensors, with a head or without; the head is the embedding."""
    return {
        name: Origin(f"model.{name.removeprefix('model.').replace('lm_head.', 'embed_tokens.')}") for name in shapes
    }
